"""A whole training run's inputs at toy size: student, teacher, tokenizer, coloured pictures, run.yaml. Seeded."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml
from PIL import Image

if TYPE_CHECKING:  # heavy, and a test of a numpy module must not pay for torch
    from collections.abc import Sequence

    from tokenizers import Tokenizer
    from torch import Tensor
    from transformers import PreTrainedModel

    from drivekd.config import RunConfig
    from drivekd.data.batch import Batch, Collator
    from drivekd.data.packs import Pack
    from drivekd.distill.rows import Rows
    from drivekd.distill.teachers.features import ImageFeatures
    from drivekd.distill.teachers.teachers import Teachers
    from drivekd.distill.training.objectives import Objectives
    from drivekd.distill.training.trainer import Trainer
    from drivekd.sample import Sample

COLOURS = ("Red", "Green", "Blue")
QUESTIONS = {
    "perception": "What colour is it? Options: A. Red. B. Green. C. Blue.",
    "reasoning": "Why? Options: A. Red. B. Green. C. Blue.",
    "planning": "What should the ego vehicle do next, and why? Options: A. Red. B. Green. C. Blue.",
}
NUM_PICTURES = 6
FAMILIES = ("internvl", "qwen2_5_vl")
KINDS = (*FAMILIES, "llama")  # and InternVL with another text model than Qwen2

SETTINGS: dict[str, Any] = {
    "seed": 3,
    "student": {"checkpoint": "student", "train": ["vision_encoder", "projector", "language_model"]},
    "teachers": {"perception": "teacher", "reasoning": "teacher", "planning": "teacher"},
    "data": {"train": ["train.json"], "unlabelled": ["unlabelled.json"], "validation": "train.json"},
    "signals": {"weighting": "relative"},
    "optimizer": {"learning_rate": 3e-3},
    "training": {
        "steps": 6,
        "batch_size": 6,
        "unlabelled_batch_size": 3,
        "micro_batch_size": 4,
        "checkpoint_every_steps": 2,
        "device": "cpu",
        "threads": 1,
    },
}
QWEN_CAMERA_SIZE_PX = (84, 56)
NO_TEACHERS = ("teachers={}", "data.unlabelled=[]", "training.unlabelled_batch_size=0")  # overrides: plain fine-tuning


@dataclass(frozen=True)
class TinyRun:
    """A folder with student, teacher, records and run.yaml; 3 and 4 layers.

    internvl: tiles of 56 px, 4 vision tokens an image. qwen2_5_vl: tiles of 84 x 56 px, 6 vision tokens.
    """

    folder: Path

    @property
    def student(self) -> Path:
        return self.folder / "student"

    @property
    def teacher(self) -> Path:
        return self.folder / "teacher"

    @property
    def yaml(self) -> Path:
        return self.folder / "run.yaml"

    def config(self, *overrides: str) -> RunConfig:
        """run.yaml with `--set` overrides."""
        from drivekd.config import load_config

        return load_config(self.yaml, overrides)


def write_tiny_run(folder: Path, tokenizer: Tokenizer, family: str = "internvl") -> TinyRun:
    """Fill a folder. tokenizer: make_tokenizer(family). family: one of FAMILIES, or InternVL's text model."""
    from drivekd.models.tiny import TinySize, build_tiny, build_tiny_qwen, write_checkpoint

    run = TinyRun(folder)
    form: Any = {"image_size_px": 56, "text_model": "qwen2" if family in FAMILIES else family}
    student = TinySize(vision_layers=1, vision_width=32, language_layers=3, language_width=32, **form)
    teacher = TinySize(vision_layers=2, vision_width=48, language_layers=4, language_width=48, **form)
    for seed, (checkpoint, size) in enumerate([(run.student, student), (run.teacher, teacher)]):
        build = build_tiny_qwen if family == "qwen2_5_vl" else build_tiny
        model = sharpened(build(size, tokenizer, seed=seed), 3.0 if family in FAMILIES else 5.0)
        write_checkpoint(checkpoint, model, tokenizer, camera_size_px=QWEN_CAMERA_SIZE_PX)
    records = _write_pictures(folder / "images")
    (folder / "train.json").write_text(json.dumps(records), encoding="utf-8")
    asked = [{**record, "messages": record["messages"][:1]} for record in records]
    (folder / "unlabelled.json").write_text(json.dumps(asked), encoding="utf-8")
    run.yaml.write_text(yaml.safe_dump(SETTINGS), encoding="utf-8")
    return run


def make_tokenizer(family: str = "internvl") -> Tokenizer:
    from drivekd.models.tiny import QWEN_SPECIAL_TOKENS, SPECIAL_TOKENS, train_tokenizer

    special_tokens = QWEN_SPECIAL_TOKENS if family == "qwen2_5_vl" else SPECIAL_TOKENS
    words = [*QUESTIONS.values(), *(f"{letter}. {name}." for letter, name in zip("ABC", COLOURS, strict=True))]
    return train_tokenizer(words * 20, ["0.005", "CAM_FRONT"], 400, special_tokens=special_tokens)


def sharpened(model: PreTrainedModel, factor: float = 3.0) -> PreTrainedModel:
    """Freshly initialised attention is uniform to 1e-4, and every test on maps would be vacuous. Llama has no biases to help."""
    for layer in model.model.language_model.layers:
        layer.self_attn.q_proj.weight.data.mul_(factor)
        layer.self_attn.k_proj.weight.data.mul_(factor)
    return model


def start_trainer(run: TinyRun, *overrides: str, labelled: list[Sample] | None = None) -> Trainer:
    """A trainer on run.yaml with overrides; labelled: samples instead of those of run.yaml's files."""
    from drivekd.distill.training.train import read_training_samples
    from drivekd.distill.training.trainer import Trainer, TrainingSamples

    config = run.config(*overrides)
    return Trainer(config, read_training_samples(config) if labelled is None else TrainingSamples(labelled, [], []))


def stepped(trainer: Trainer) -> tuple[dict[str, Any], Tensor]:
    """One step: its record, and the direction [P] that it gave to AdamW."""
    import torch

    record = trainer.step()
    return record, torch.cat([p.grad.flatten() for p in trainer.student.parameters() if p.grad is not None])


@dataclass(frozen=True)
class Pair:
    """Student and teachers of a run without the loop around them: what a micro-batch's losses are made from."""

    student: PreTrainedModel
    collate: Collator
    features: ImageFeatures
    teachers: Teachers | None
    rows: Rows
    objectives: Objectives

    def losses(self, batch: Batch, step: int = 0) -> dict[str, float]:
        """Each term's sum over the batch, divided by the batch's samples (CE: labelled samples)."""
        from drivekd.distill.training.objectives import StepSize

        size = StepSize(step, max(1, int(batch.labelled.sum())), len(batch.samples))
        with self.objectives.losses(batch, size) as found:
            return {self.rows.names[row]: float(loss.detach()) for row, loss in found.items()}

    def gradients(self, chunks: Sequence[Sequence[Pack]], step: int = 0) -> tuple[dict[str, float], dict[str, Tensor]]:
        """A step over micro-batches of packs: each term's loss, and its gradient [P] over the trainable parameters."""
        import torch

        from drivekd.distill.training.objectives import StepSize

        samples = [sample for chunk in chunks for pack in chunk for sample in pack]
        size = StepSize(step, sum(sample.answer is not None for sample in samples), len(samples))
        parameters = [parameter for parameter in self.student.parameters() if parameter.requires_grad]
        zero = torch.zeros(sum(parameter.numel() for parameter in parameters))
        losses, totals = dict.fromkeys(self.rows.names, 0.0), {name: zero.clone() for name in self.rows.names}
        for chunk in chunks:
            with self.objectives.losses(self.collate(chunk), size) as found:
                for row, loss in found.items():
                    grads = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
                    filled = [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, grads, strict=True)]
                    losses[self.rows.names[row]] += float(loss.detach())
                    totals[self.rows.names[row]] += torch.cat([grad.flatten() for grad in filled])
        return losses, totals


def load_pair(run: TinyRun, *overrides: str, labelled: list[Sample] | None = None) -> Pair:
    """Student and teachers of run.yaml with overrides, as a trainer loads them."""
    trainer = start_trainer(run, *overrides, labelled=labelled)
    student, collate, features = trainer.student, trainer.collate, trainer.features
    return Pair(student, collate, features, trainer.teachers, trainer.rows, trainer.objectives)


def frame_samples(run: TinyRun, questions: Sequence[int], *, labelled: float = 0.7, seed: int = 0) -> list[Sample]:
    """questions[i] of them about frame i: mixed capabilities and lengths, some without answer; odd frames have two pictures."""
    from drivekd.sample import CAPABILITIES, Sample

    rng = np.random.default_rng(seed)
    samples = []
    for frame, count in enumerate(questions):
        images = tuple(run.folder / "images" / f"{(frame + i) % NUM_PICTURES}.png" for i in range(1 + frame % 2))
        for number in range(count):
            name = CAPABILITIES[int(rng.integers(3))]
            question = QUESTIONS[name] + " Why?" * int(rng.integers(4))
            answer = f"{'ABC'[number % 3]}. {COLOURS[number % 3]}." + " Why?" * int(rng.integers(3))
            source = f"frame {frame}, question {number}"
            samples.append(Sample(source, name, question, answer if rng.random() < labelled else None, images))
    return samples


def _write_pictures(folder: Path) -> list[dict[str, Any]]:
    """Noisy one-colour pictures, each with one question a capability; planning's records show two pictures."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(NUM_PICTURES):
        picture = rng.integers(0, 60, (40, 70, 3), dtype=np.uint8)
        picture[..., number % 3] += 180
        Image.fromarray(picture).save(folder / f"{number}.png")
    return [_record(number, capability) for number in range(NUM_PICTURES) for capability in QUESTIONS]


def _record(number: int, capability: str) -> dict[str, Any]:
    shown = [number, (number + 1) % NUM_PICTURES] if capability == "planning" else [number]
    colour = number % 3
    answer = f"{'ABC'[colour]}. {COLOURS[colour]}." + (" It is bright." if capability == "reasoning" else "")
    return {
        "messages": [
            {"role": "user", "content": "<image>" * len(shown) + QUESTIONS[capability]},
            {"role": "assistant", "content": answer},
        ],
        "images": [f"images/{index}.png" for index in shown],
        "question_type": capability,
    }
