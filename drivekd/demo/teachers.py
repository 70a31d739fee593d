"""Makes the demo's three capability teachers:  python -m drivekd.demo.teachers --out DIR

A base teacher learns every question of a fully labelled world; three copies are then fine-tuned, each on its capability. The
results lie in `drivekd/demo/teachers/` in bf16, since making them takes longer than a demo may.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import torch
from tokenizers import Tokenizer

from drivekd.config import DataConfig, OptimizerConfig, PromptsConfig, RunConfig, StudentConfig, TrainingConfig
from drivekd.data.sample import CAMERAS, CAPABILITIES, Capability
from drivekd.distill.run import train
from drivekd.log import configure_logging, logger
from drivekd.models.internvl import load_model
from drivekd.models.tiny import TINY_TEACHER, build_tiny, train_tokenizer, write_checkpoint
from drivekd.processor import load_tokenizer
from drivekd.world import COORDINATE_WORDS, PROMPTS, WorldSettings, build_world

FRAMES = 6000
BASE_STEPS = 1600
CAPABILITY_STEPS = 250
BATCH_SIZE = 48
BASE_RATE = 2e-3
CAPABILITY_RATE = 4e-4


def make_teachers(out: Path) -> None:
    """World, tokenizer, base teacher, three capability teachers, all under `out`; each stage is kept and reused."""
    world = out / "world"
    if not world.exists():
        logger.info("rendering %d frames", FRAMES)
        build_world(world, WorldSettings(train_frames=FRAMES, labelled_frames=FRAMES))
    start = out / "start"
    if not start.exists():
        tokenizer = train_tokenizer(corpus(world / "train.json"), [*CAMERAS, *COORDINATE_WORDS], TINY_TEACHER.vocab_size)
        write_checkpoint(start, build_tiny(TINY_TEACHER, tokenizer, seed=0), tokenizer)
    base = _fine_tune(start, world, out / "base", list(CAPABILITIES), BASE_STEPS, BASE_RATE)
    for name in CAPABILITIES:
        teacher = _fine_tune(base, world, out / name, [name], CAPABILITY_STEPS, CAPABILITY_RATE)
        ship(teacher, out / "teachers" / name)


def corpus(records: Path) -> Iterator[str]:
    """Every text of a file of records, each with its chat role."""
    for record in json.loads(records.read_text()):
        for message in record["messages"]:
            yield f"{message['role']}\n"
            yield message["content"].replace("<image>", "")


def ship(checkpoint: Path, directory: Path) -> None:
    """Write a checkpoint in bf16, half the size; it is loaded into fp32 again."""
    tokenizer: Tokenizer = load_tokenizer(checkpoint)
    write_checkpoint(directory, load_model(checkpoint), tokenizer, dtype=torch.bfloat16)
    shutil.copyfile(checkpoint / "prompts.json", directory / "prompts.json")


def _fine_tune(
    checkpoint: Path, world: Path, out: Path, capabilities: list[Capability], steps: int, learning_rate: float
) -> Path:
    if (out / "final").exists():
        return out / "final"
    config = RunConfig(
        student=StudentConfig(checkpoint=checkpoint, train=["vision_encoder", "projector", "language_model"]),
        data=DataConfig(train=[world / "train.json"], validation=world / "validation.json", capabilities=capabilities),
        optimizer=OptimizerConfig(
            learning_rate=learning_rate, weight_decay=0.01, schedule="cosine", warmup_steps=steps // 20, clip_norm=1.0
        ),
        training=TrainingConfig(
            steps=steps, batch_size=BATCH_SIZE, micro_batch_size=BATCH_SIZE, checkpoint_every_steps=500, device="cpu"
        ),
        prompts=PromptsConfig(
            perception=PROMPTS["perception"], reasoning=PROMPTS["reasoning"], planning=PROMPTS["planning"]
        ),
    )
    summary = train(config, out, resume=(out / "checkpoints").exists())
    logger.info("%s: loss %s, validation %s", out.name, summary.loss, summary.validation_loss)
    return summary.final


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="working folder; the result is OUT/teachers")
    configure_logging()
    make_teachers(parser.parse_args().out)


if __name__ == "__main__":
    main()
