"""What several tiles a camera bring: the colour of a traffic light by its distance, and what they cost.

    python -m benchmarks.evaluate.tiles --work DIR
    python -m benchmarks.evaluate.tiles --work DIR --cost 20         # CPU ms of steps and of frames, in turns, instead

The demo's perception teacher (it knows the world in one tile a camera) is fine-tuned on one question, "What does the traffic
signal ahead show?", about pictures of 320x180 px (distant_lights.py): same pictures, order, steps and seeds, once with each
tiling. Its tiles have 112 px, so the lamp of a light at 100 m is 1.0 px wide in one tile and 2.0 px in two. Chance is .5.
DIR keeps pictures and students; what is there is not made again.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.machine import about, print_about
from drivekd.config import DataConfig, OptimizerConfig, RunConfig, StudentConfig, TrainingConfig
from drivekd.data.readers import read_samples
from drivekd.demo.pipeline import MODELS
from drivekd.distill.training.train import read_training_samples, train
from drivekd.distill.training.trainer import Trainer
from drivekd.evaluate.answering import AnswererSettings, open_answerer
from drivekd.evaluate.extract import choice
from drivekd.export import bundle_from_checkpoint
from drivekd.files import versions
from drivekd.images import load_image
from drivekd.runtime import load_bundle
from drivekd.sample import Sample

from .distant_lights import SEEN_PX, lamp_width_px, write_lights

TILINGS = ("1x1", "2x1", "2x1+thumbnail")
BANDS_M = (30, 75, 150, 300, 600)
TILE_PX = 112  # of the demo's models
RESAMPLES = 2000
THREADS = 1  # so that CPU seconds mean the same on a busy machine


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for pictures and students; kept, and taken up again")
    parser.add_argument("--tilings", type=lambda text: text.split(","), default=list(TILINGS), help="comma-separated")
    parser.add_argument("--seeds", type=lambda text: [int(seed) for seed in text.split(",")], default=[0, 1])
    parser.add_argument("--steps", type=int, default=250)
    parser.add_argument("--frames", type=int, default=1600, help="of training")
    parser.add_argument("--test-frames", type=int, default=1200)
    parser.add_argument("--workers", type=int, default=1, help="processes that render")
    parser.add_argument("--cost", type=int, default=0, metavar="TURNS", help="time so many steps and frames of each instead")
    arguments = parser.parse_args()
    torch.set_num_threads(THREADS)
    work: Path = arguments.work.resolve()
    for split, count in (("train", arguments.frames), ("test", arguments.test_frames)):
        if not (work / f"{split}.json").exists():
            shutil.rmtree(work / split, ignore_errors=True)
            write_lights(work, split, count, arguments.workers)
    students = {
        (tiles, seed): _student(work, tiles, seed, arguments.steps) for seed in arguments.seeds for tiles in arguments.tilings
    }
    print_about(about(THREADS))
    print(json.dumps(versions()))
    if arguments.cost:
        _print_cost(work, {tiles: students[tiles, arguments.seeds[0]] for tiles in arguments.tilings}, arguments)
        return 0
    samples = read_samples(work / "test.json")
    correct = {
        tiles: np.stack([_correct(students[tiles, seed], samples) for seed in arguments.seeds]) for tiles in arguments.tilings
    }
    distances = json.loads((work / "test-distances.json").read_text(encoding="utf-8"))
    _print_accuracy(correct, np.array([distances[sample.scene] for sample in samples]), arguments)
    return 0


# --- accuracy -------------------------------------------------------------------------------------------------------


def _config(work: Path, tiles: str, seed: int, steps: int) -> RunConfig:
    return RunConfig(
        seed=seed,
        student=StudentConfig(checkpoint=MODELS / "perception", train=["vision_encoder", "projector", "language_model"]),
        data=DataConfig(train=[work / "train.json"], tiles=tiles),
        optimizer=OptimizerConfig(
            learning_rate=7e-4, weight_decay=0.01, schedule="cosine", warmup_steps=steps // 20, clip_norm=1.0
        ),
        training=TrainingConfig(
            steps=steps,
            batch_size=32,
            micro_batch_size=32,
            checkpoint_every_steps=steps,
            keep_checkpoints=1,
            device="cpu",
            threads=THREADS,
        ),
    )


def _student(work: Path, tiles: str, seed: int, steps: int) -> Path:
    """DIR/students/TILES-SEED-STEPS/final, trained where it is not there."""
    out = work / "students" / f"{tiles}-{seed}-{steps}"
    if not (out / "final").is_dir():
        shutil.rmtree(out, ignore_errors=True)
        started_s = time.process_time()
        train(_config(work, tiles, seed, steps), out)
        print(f"{out.name}: trained in {time.process_time() - started_s:.0f} CPU s", file=sys.stderr)
    return out / "final"


def _correct(student: Path, samples: Sequence[Sample]) -> NDArray[np.float64]:
    answers = open_answerer(student, AnswererSettings(max_new_tokens=8, device="cpu")).answers(samples)
    letters = [choice(given.text, sample.question) for given, sample in zip(answers, samples, strict=True)]
    return np.array([letter == sample.answer[0] for letter, sample in zip(letters, samples, strict=True) if sample.answer], float)


def _print_accuracy(
    correct: Mapping[str, NDArray[np.float64]], distances_m: NDArray[np.float64], arguments: argparse.Namespace
) -> None:
    """correct [seeds, n] by tiling. Intervals: 95 %, frames resampled, each with its answers of all seeds."""
    first, *others = correct
    print(f"{arguments.steps} steps of 32 of {arguments.frames} frames, seeds {arguments.seeds}, pictures {SEEN_PX} px")
    print("| light at | n | lamp, px wide in 1x1 | " + " | ".join(correct) + f" | points more than {first} |")
    print("| --- | ---: | ---: | " + " | ".join("---" for _ in correct) + " | --- |")
    bands = [*pairwise(BANDS_M), (BANDS_M[0], BANDS_M[-1])]
    for near, far in bands:
        chosen = (distances_m >= near) & (distances_m < far + (far == BANDS_M[-1]))
        scores = [_told(of[:, chosen].mean(0)) for of in correct.values()]
        more = [f"{name} {_told(100 * (correct[name] - correct[first])[:, chosen].mean(0), 1)}" for name in others]
        widths = " to ".join(f"{lamp_width_px(metres, TILE_PX, 1):.1f}" for metres in (near, far))
        print(f"| {near} to {far} m | {chosen.sum()} | {widths} | " + " | ".join([*scores, "; ".join(more)]) + " |")
    for name, of in correct.items():
        print(f"{name}: whole accuracy by seed {', '.join(f'{seed.mean():.3f}' for seed in of)}")


def _told(values: NDArray[np.float64], digits: int = 3) -> str:
    """Mean of one value a frame, and its interval."""
    draws = np.random.default_rng(0).integers(0, len(values), (RESAMPLES, len(values)))
    low, high = np.percentile(values[draws].mean(1), [2.5, 97.5])
    return f"{values.mean():.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


# --- cost -----------------------------------------------------------------------------------------------------------


def _print_cost(work: Path, students: Mapping[str, Path], arguments: argparse.Namespace) -> None:
    """A training step of 32 questions, and a frame of the runtime that shows something new, in turns.

    CPU milliseconds are medians; those on the clock are the least of the turns, which a busy machine disturbs least.
    """
    steps_ms = _step_ms(work, students, arguments)
    frames_ms = _frame_ms(work, students, arguments.cost)
    print("| tiles | vision tokens | CPU ms a step | vision, ms | prefill, ms | CPU ms a frame | times 1x1: step, frame |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | --- |")
    first = next(iter(students))
    for tiles in students:
        tokens, vision, prefill, total = frames_ms[tiles]
        times = f"{steps_ms[tiles] / steps_ms[first]:.2f}, {total / frames_ms[first][3]:.2f}"
        print(f"| {tiles} | {tokens:.0f} | {steps_ms[tiles]:.0f} | {vision:.2f} | {prefill:.2f} | {total:.2f} | {times} |")


def _step_ms(work: Path, students: Mapping[str, Path], arguments: argparse.Namespace) -> dict[str, float]:
    configs = {tiles: _config(work, tiles, 0, arguments.steps) for tiles in students}
    trainers = {tiles: Trainer(config, read_training_samples(config)) for tiles, config in configs.items()}
    taken: dict[str, list[float]] = {tiles: [] for tiles in trainers}
    for _ in range(arguments.cost + 1):  # the first of each is not counted
        for tiles, trainer in trainers.items():
            started_s = time.process_time()
            trainer.step()
            taken[tiles].append(1000 * (time.process_time() - started_s))
    return {tiles: statistics.median(of[1:]) for tiles, of in taken.items()}


def _frame_ms(work: Path, students: Mapping[str, Path], turns: int) -> dict[str, tuple[float, float, float, float]]:
    """Vision tokens; ms of vision and of the prefix's prefill; CPU ms of a whole frame with one question answered."""
    paths = [path for sample in read_samples(work / "test.json")[: turns + 1] for path in sample.images]
    question = read_samples(work / "test.json")[0].question
    found: dict[str, list[tuple[float, float, float]]] = {tiles: [] for tiles in students}
    sessions = {}
    for tiles, student in students.items():
        bundle = student.parent / "bundle"
        if not bundle.exists():
            bundle_from_checkpoint(student, bundle)
        sessions[tiles] = load_bundle(bundle, threads=THREADS)
    for path in paths:
        for tiles, session in sessions.items():
            picture, started_s = load_image(path), time.process_time()
            session.answer({"CAM_FRONT": picture}, question=question, max_new_tokens=4)
            taken_ms = 1000 * (time.process_time() - started_s)
            found[tiles].append((session.timings_ms["vision"], session.timings_ms["prefill"], taken_ms))
    tokens = {tiles: session.manifest.chat.tokens_per_image for tiles, session in sessions.items()}
    for session in sessions.values():
        session.close()
    least = {tiles: np.min(of[1:], axis=0)[:2].tolist() for tiles, of in found.items()}
    return {tiles: (tokens[tiles], *least[tiles], float(np.median(of[1:], axis=0)[2])) for tiles, of in found.items()}


if __name__ == "__main__":
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    raise SystemExit(main())
