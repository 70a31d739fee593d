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
    from tokenizers import Tokenizer
    from torch import Tensor
    from transformers import InternVLForConditionalGeneration

    from drivekd.config import RunConfig
    from drivekd.distill.trainer import Trainer

COLOURS = ("Red", "Green", "Blue")
QUESTIONS = {
    "perception": "What colour is it? Options: A. Red. B. Green. C. Blue.",
    "reasoning": "Why? Options: A. Red. B. Green. C. Blue.",
    "planning": "What should the ego vehicle do next, and why? Options: A. Red. B. Green. C. Blue.",
}
NUM_PICTURES = 6

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
NO_TEACHERS = ("teachers={}", "data.unlabelled=[]", "training.unlabelled_batch_size=0")  # overrides: plain fine-tuning


@dataclass(frozen=True)
class TinyRun:
    """A folder with student, teacher, records and run.yaml: 56 px tiles, 4 vision tokens an image, 3 and 4 layers."""

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


def write_tiny_run(folder: Path, tokenizer: Tokenizer) -> TinyRun:
    """Fill a folder."""
    from drivekd.models.tiny import TinySize, build_tiny, write_checkpoint

    run = TinyRun(folder)
    student = TinySize(vision_layers=1, vision_width=32, language_layers=3, language_width=32, image_size_px=56)
    teacher = TinySize(vision_layers=2, vision_width=48, language_layers=4, language_width=48, image_size_px=56)
    write_checkpoint(run.student, sharpened(build_tiny(student, tokenizer, seed=0)), tokenizer)
    write_checkpoint(run.teacher, sharpened(build_tiny(teacher, tokenizer, seed=1)), tokenizer)
    records = _write_pictures(folder / "images")
    (folder / "train.json").write_text(json.dumps(records))
    asked = [{**record, "messages": record["messages"][:1]} for record in records]
    (folder / "unlabelled.json").write_text(json.dumps(asked))
    run.yaml.write_text(yaml.safe_dump(SETTINGS))
    return run


def make_tokenizer() -> Tokenizer:
    from drivekd.models.tiny import train_tokenizer

    words = [*QUESTIONS.values(), *(f"{letter}. {name}." for letter, name in zip("ABC", COLOURS, strict=True))]
    return train_tokenizer(words * 20, ["0.005", "CAM_FRONT"], 400)


def sharpened(model: InternVLForConditionalGeneration) -> InternVLForConditionalGeneration:
    """Freshly initialised attention is uniform to 1e-4, and every test on maps would be vacuous."""
    for layer in model.model.language_model.layers:
        layer.self_attn.q_proj.weight.data.mul_(3.0)
        layer.self_attn.k_proj.weight.data.mul_(3.0)
    return model


def start_trainer(run: TinyRun, *overrides: str) -> Trainer:
    """A trainer on run.yaml with overrides and its records."""
    from drivekd.distill.run import read_training_samples
    from drivekd.distill.trainer import Trainer

    config = run.config(*overrides)
    return Trainer(config, read_training_samples(config))


def stepped(trainer: Trainer) -> tuple[dict[str, Any], Tensor]:
    """One step: its record, and the direction [P] that it gave to AdamW."""
    import torch

    record = trainer.step()
    return record, torch.cat([p.grad.flatten() for p in trainer.student.parameters() if p.grad is not None])


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
