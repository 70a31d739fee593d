"""Makes the models that the demo ships:  python -m drivekd.demo.pretraining --out DIR

    student     a small model that has read captions of the driving world, as InternVL3-1B has read captions of ours
    teachers    a larger model: captions, then every question, then three copies fine-tuned, each on its capability

All scenes are labelled here; the demo's student sees answers to few of them. All four learn free text first (OUT/free-text), then
get tokens for what JSON answers are written with, and read on in both forms. The result is OUT/models in bf16, which lies in
`drivekd/demo/models/`, since making it takes longer than a demo may.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, pre_tokenizers

from drivekd.config import DataConfig, OptimizerConfig, PromptsConfig, RunConfig, StudentConfig, TrainingConfig
from drivekd.contract import CONTRACT_FILE
from drivekd.distill.training.train import train
from drivekd.files import TRACES_FILE, whole_directory
from drivekd.hf_checkpoint import Checkpoint
from drivekd.log import configure_logging, logger
from drivekd.models.internvl import load_model
from drivekd.models.tiny import PHRASE_SPLIT, TINY_STUDENT, TINY_TEACHER, TinySize, build_tiny, train_tokenizer, write_checkpoint
from drivekd.processor import num_words
from drivekd.sample import CAMERAS, CAPABILITIES, Capability
from drivekd.world import COORDINATE_WORDS, PROMPTS, WorldSettings, build_world

FRAMES = 6000
CAPTION_TOPIC = "scene"


@dataclass(frozen=True)
class Stage:
    """One run of supervised fine-tuning. records: file in the world's folder; steps of batch_size questions. both_forms: each
    structured answer is learnt beside the free one."""

    name: str
    records: str
    steps: int
    batch_size: int
    learning_rate: float
    capabilities: Sequence[Capability] = CAPABILITIES
    both_forms: bool = False


STUDENT_CAPTIONS = Stage("student", "captions.json", 400, 64, 3e-3)
TEACHER_CAPTIONS = Stage("teacher-captions", "captions.json", 700, 64, 2e-3)
TEACHER_QUESTIONS = Stage("teacher-questions", "train.json", 900, 48, 1.5e-3)
TEACHER_CAPABILITIES = [Stage(name, "train.json", 200, 48, 5e-4, [name]) for name in CAPABILITIES]
STUDENT_FORMS = Stage("student-forms", "captions.json", 1200, 64, 2e-3, both_forms=True)
TEACHER_FORMS = [Stage(f"{name}-forms", "train.json", 850, 48, 7e-4, [name], both_forms=True) for name in CAPABILITIES]
BOTH_FORMS = dict(zip(["student", *CAPABILITIES], [STUDENT_FORMS, *TEACHER_FORMS], strict=True))
JSON_WORDS_LEAST = 5  # a piece of a JSON answer that stands so often in the records becomes a token


def make_models(out: Path) -> None:
    """World, tokenizer, student and teachers under `out`; a finished stage is kept and reused."""
    world = out / "world"
    if not world.exists():
        logger.info("rendering %d frames", FRAMES)
        build_world(world, WorldSettings(train_frames=FRAMES, labelled_frames=FRAMES))
    captions = [record for record in _records(world / "train.json") if record["meta"]["topic"] == CAPTION_TOPIC]
    (world / "captions.json").write_text(json.dumps(captions), encoding="utf-8")
    free_text = out / "free-text"
    if not free_text.exists():
        _learn_free_text(out, free_text)
    words = json_words(world / "train.json")
    for name, stage in BOTH_FORMS.items():
        _ship(_fine_tune(grown(free_text / name, words, out / "grown" / name), out, stage), out / "models" / name)


def _learn_free_text(out: Path, result: Path) -> None:
    tokenizer = train_tokenizer(corpus(out / "world" / "train.json"), [*CAMERAS, *COORDINATE_WORDS], TINY_TEACHER.vocab_size)
    made = {"student": _fine_tune(_fresh(out / "fresh-student", TINY_STUDENT, tokenizer), out, STUDENT_CAPTIONS)}
    captioner = _fine_tune(_fresh(out / "fresh-teacher", TINY_TEACHER, tokenizer), out, TEACHER_CAPTIONS)
    base = _fine_tune(captioner, out, TEACHER_QUESTIONS)
    made |= {stage.name: _fine_tune(base, out, stage) for stage in TEACHER_CAPABILITIES}
    with whole_directory(result) as folder:
        for name, checkpoint in made.items():
            _ship(checkpoint, folder / name)


def json_words(records: Path) -> list[str]:
    """The pieces that the records' structured answers are written with, the commonest first, and the words that ask for JSON.

    A piece is what PHRASE_SPLIT keeps together; a camera's name is a token already.
    """
    split, counts = pre_tokenizers.Split(Regex(PHRASE_SPLIT), behavior="isolated"), Counter[str]()
    cameras = re.compile("|".join(CAMERAS))
    for record in _records(records):
        if "structured" in record:
            for text in cameras.split(json.dumps(record["structured"], separators=(",", ":"))):
                counts.update(piece for piece, _ in split.pre_tokenize_str(text) if len(piece) > 2)
    common = [piece for piece, count in counts.most_common() if count >= JSON_WORDS_LEAST]
    return [*common, PromptsConfig().structured_instruction.strip()]


def grown(checkpoint: Path, words: Sequence[str], directory: Path) -> Path:
    """The checkpoint with a token for each word, whose embedding starts as the mean of those that the word consisted of."""
    if directory.exists():
        return directory
    opened = Checkpoint.open(checkpoint)
    model, tokenizer = load_model(opened), opened.files.tokenizer
    new = [word for word in words if tokenizer.token_to_id(word) is None]
    pieces = {word: tokenizer.encode(word, add_special_tokens=False).ids for word in new}
    tokenizer.add_tokens(new)
    model.resize_token_embeddings(num_words(tokenizer), mean_resizing=False)
    with torch.no_grad():
        embeddings = model.get_input_embeddings().weight
        for word, ids in pieces.items():
            embeddings[tokenizer.token_to_id(word)] = embeddings[ids].mean(0)
    with whole_directory(directory) as folder:
        write_checkpoint(folder, model, tokenizer)
    return directory


def corpus(records: Path) -> Iterator[str]:
    """Every text of a file of records, each with its chat role."""
    for record in json.loads(records.read_text(encoding="utf-8")):
        for message in record["messages"]:
            yield f"{message['role']}\n"
            yield message["content"].replace("<image>", "")


def _records(path: Path) -> list[dict[str, dict[str, str]]]:
    records: list[dict[str, dict[str, str]]] = json.loads(path.read_text(encoding="utf-8"))
    return records


def _fresh(directory: Path, size: TinySize, tokenizer: Tokenizer) -> Path:
    if not directory.exists():
        write_checkpoint(directory, build_tiny(size, tokenizer, seed=0), tokenizer)
    return directory


def _ship(checkpoint: Path, directory: Path) -> None:
    """Write a checkpoint in bf16, half the size; it is loaded into fp32 again."""
    opened = Checkpoint.open(checkpoint)
    write_checkpoint(directory, load_model(opened), opened.files.tokenizer, dtype=torch.bfloat16)
    for name in (CONTRACT_FILE, TRACES_FILE):
        shutil.copyfile(checkpoint / name, directory / name)


def _fine_tune(checkpoint: Path, out: Path, stage: Stage) -> Path:
    directory = out / stage.name
    if (directory / "final").exists():
        return directory / "final"
    config = RunConfig(
        student=StudentConfig(checkpoint=checkpoint, train=["vision_encoder", "projector", "language_model"]),
        data=DataConfig(
            train=[out / "world" / stage.records],
            validation=out / "world" / "validation.json",
            capabilities=list(stage.capabilities),
            structured="also" if stage.both_forms else "none",
        ),
        optimizer=OptimizerConfig(
            learning_rate=stage.learning_rate,
            weight_decay=0.01,
            schedule="cosine",
            warmup_steps=stage.steps // 20,
            clip_norm=1.0,
        ),
        training=TrainingConfig(
            steps=stage.steps,
            batch_size=stage.batch_size,
            micro_batch_size=stage.batch_size,
            checkpoint_every_steps=100,
            device="cpu",
        ),
        prompts=PromptsConfig(perception=PROMPTS["perception"], reasoning=PROMPTS["reasoning"], planning=PROMPTS["planning"]),
    )
    summary = train(config, directory, resume=(directory / "checkpoints").exists())
    logger.info("%s: loss %s, validation %s", stage.name, summary.loss, summary.validation_loss)
    return summary.final


def main() -> None:
    """The command line: `python -m drivekd.demo.pretraining --out FOLDER`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="working folder; the result is OUT/models")
    configure_logging()
    make_models(parser.parse_args().out)


if __name__ == "__main__":
    main()
