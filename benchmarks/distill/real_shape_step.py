"""One training step of InternVL3-1B's real shapes with random weights: memory and seconds, signals from the cache.

    python -m benchmarks.distill.real_shape_step --work DIR

The student has InternVL3-1B's sizes (24 x 896, 151,674 words, 24 x 1024 vision tower, 448 px tiles: 938 million parameters) and
is written to disk, loaded and trained: the language model in full, fp32 masters, AdamW, three capabilities on one frame of six
cameras. The teacher is narrow (28 x 256) but as deep as InternVL3-8B: a real one would not fit beside the student on a small
machine, and with signals in the cache it is not even loaded. Reasoning compares text rows at one layer here, so that it can be
cached, too. Prints one table; seconds are of a shared machine.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import time
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
import torch
import transformers
from PIL import Image
from tokenizers import Tokenizer
from transformers import InternVLForConditionalGeneration

from benchmarks.export.models import INTERNVL3_1B_TEXT, INTERNVL3_1B_TOWER, INTERNVL3_1B_VOCABULARY, internvl_config
from drivekd.config import load_config
from drivekd.distill.training.train import read_training_samples
from drivekd.distill.training.trainer import Trainer
from drivekd.models.tiny import train_tokenizer, write_checkpoint
from drivekd.sample import CAMERAS, CAPABILITIES
from drivekd.tables import render_table

QUESTIONS = {
    "perception": "What are the important objects in the current scene?",
    "reasoning": "What object should the ego vehicle notice first? Why?",
    "planning": "In this scenario, what are safe actions to take for the ego vehicle?",
}
NARROW_TOWER = {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 256}
TEACHER = {"hidden_size": 256, "num_hidden_layers": 28, "num_attention_heads": 4, "intermediate_size": 512}


def write_model(folder: Path, tower: dict[str, int], text: dict[str, int], tokenizer: Tokenizer, vocab_size: int) -> int:
    """A checkpoint with seeded random weights; returns its number of parameters."""
    torch.manual_seed(0)
    config = internvl_config(tower, text, tokenizer, vocab_size)
    model = InternVLForConditionalGeneration(config)
    write_checkpoint(folder, model, tokenizer)
    return sum(parameter.numel() for parameter in model.parameters())


def write_records(work: Path) -> Path:
    """One frame of six noisy cameras with one question a capability."""
    images = []
    for number, camera in enumerate(CAMERAS):
        noise = np.random.default_rng(number).integers(0, 255, (450, 800, 3), dtype=np.uint8)
        Image.fromarray(noise).save(work / f"{camera}.jpg")
        images.append(f"{camera}.jpg")
    records = [
        {
            "messages": [
                {"role": "user", "content": "<image>" * len(images) + QUESTIONS[name] + " Answer in detail." * 20},
                {"role": "assistant", "content": "There is a white van ahead and a pedestrian to the right. " * 8},
            ],
            "images": images,
            "question_type": name,
        }
        for name in CAPABILITIES
    ]
    (work / "train.json").write_text(json.dumps(records), encoding="utf-8")
    return work / "train.json"


def write_run(work: Path) -> Path:
    """The run's YAML: frame packing, a cache on disk, text-to-vision signals alone."""
    path = work / "run.yaml"
    path.write_text(
        json.dumps(  # JSON is YAML
            {
                "student": {"checkpoint": "student", "train": ["language_model"]},
                "teachers": dict.fromkeys(CAPABILITIES, "teacher"),
                "data": {"train": ["train.json"]},
                "signals": {
                    "weighting": "relative",
                    "reasoning": {"form": "text_to_vision", "student_layers": [12], "teacher_layers": [14]},
                },
                "cache": {"directory": "cache"},
                "training": {"steps": 10, "batch_size": 1, "packing": "frame", "device": "cpu"},
            }
        ),
        encoding="utf-8",
    )
    return path


def peak_gb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for models, records and cache; 5 GB")
    parser.add_argument("--steps", type=int, default=2, help="the first one fills the cache")
    arguments = parser.parse_args()
    work: Path = arguments.work
    work.mkdir(parents=True, exist_ok=True)
    texts = [*QUESTIONS.values(), "Answer in detail. There is a white van ahead and a pedestrian to the right."]
    tokenizer = train_tokenizer(texts * 20, [], 600)
    rows = []
    if not (work / "student").exists():
        count = write_model(work / "student", INTERNVL3_1B_TOWER, INTERNVL3_1B_TEXT, tokenizer, INTERNVL3_1B_VOCABULARY)
        write_model(work / "teacher", NARROW_TOWER, TEACHER, tokenizer, tokenizer.get_vocab_size())
        rows.append(["student parameters", f"{count:,}"])
    write_records(work)
    config = load_config(write_run(work))
    started_s = time.perf_counter()
    trainer = Trainer(config, read_training_samples(config))
    rows.append(["loaded", f"{time.perf_counter() - started_s:.1f} s, {peak_gb():.1f} GB"])
    for number in range(1, arguments.steps + 1):
        record = trainer.step()
        losses = "  ".join(f"{name} {value:.3g}" for name, value in record["loss"].items())
        seconds = f"{record['seconds']:.1f} s, peak {peak_gb():.1f} GB  {losses}"
        rows.append([f"step {number}: {record['tokens']:,} tokens", seconds])
        trainer.caches.flush()
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}, {torch.get_num_threads()} threads"
    title = f"InternVL3-1B shapes, {datetime.now(timezone.utc):%Y-%m-%d}, {platform.machine()}, {versions}"
    print(render_table(title, ["", ""], rows))
    print(json.dumps({"peak_gb": peak_gb(), "rows": rows}))


if __name__ == "__main__":
    main()
