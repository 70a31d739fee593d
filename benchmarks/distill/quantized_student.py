"""The demo's student in fewer bits: accuracy by capability as trained, rounded afterwards, and trained through rounding.

    python -m benchmarks.distill.quantized_student --work DIR
    python -m benchmarks.distill.quantized_student --work DIR --cost 12        # CPU seconds of so many steps, in turns, instead

Every student is the demo's own (drivekd/demo/demo.yaml, its built-in world, seed and settings) but for `student.quantization`:

    plain              none; scored as it is, and with int4 weights by rounding to the nearest
    int4               rounded from the first step
    int4-last-third    rounded in the last third of the steps

Scores are those of `drivekd eval`: a checkpoint with weight_scales.safetensors answers with its rounded weights. DIR keeps the
world, and final/ of each student for exports; what is there is not made again. Differences are paired: both answered the same
questions, and frames are resampled together.
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
from pathlib import Path

import numpy as np
import torch

from benchmarks.machine import about, print_about
from drivekd.config import RunConfig, load_config
from drivekd.data.readers import read_samples
from drivekd.demo.pipeline import CONFIG, MODELS, DemoSize, format_score
from drivekd.distill.training.train import read_training_samples, train
from drivekd.distill.training.trainer import Trainer
from drivekd.evaluate import EvaluationReport, evaluate, write_report
from drivekd.evaluate.answering import open_answerer
from drivekd.files import versions
from drivekd.models import load_model
from drivekd.quantization.form import WeightForm, quantized
from drivekd.quantization.linears import forms_of, linear_layers
from drivekd.quantization.scales import write_scales
from drivekd.sample import CAPABILITIES, Sample
from drivekd.world import build_world

STUDENTS: dict[str, tuple[str, ...]] = {
    "plain": (),
    "int4": ("student.quantization={precision: int4, int8: [lm_head]}",),
    "int4-last-third": ("student.quantization={precision: int4, int8: [lm_head], last_steps: 233}",),
}
ROUNDED = "plain, int4 by rounding"
RESAMPLES = 2000


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for world, runs and reports; kept, and taken up again")
    parser.add_argument("--students", type=lambda text: text.split(","), default=list(STUDENTS), help="comma-separated names")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="for every student, as training.steps=40")
    parser.add_argument("--cost", type=int, default=0, metavar="STEPS", help="time so many steps of plain and int4 instead")
    arguments = parser.parse_args()
    work: Path = arguments.work.resolve()
    if not (work / "world" / "test.json").exists():
        build_world(work / "world", DemoSize().world)
    if arguments.cost:
        _print_cost(work, arguments.cost)
        return 0
    finals = {name: _student(work, name, arguments.set) for name in arguments.students}
    if "plain" in finals:
        finals[ROUNDED] = _rounded(finals["plain"], work / "plain-int4")
    samples = [sample for sample in read_samples(work / "world" / "test.json") if sample.answer_form != "open"]
    reference = read_samples(work / "world" / "train.json")
    reports = {name: _scored(final, work / "evaluation" / name, samples, reference) for name, final in finals.items()}
    print_about(about(torch.get_num_threads()))
    print(json.dumps(versions()))
    _print_table(reports, samples)
    return 0


def _student(work: Path, name: str, more: Sequence[str]) -> Path:
    """DIR/NAME/final, trained where it is not there."""
    out = work / name
    if not (out / "final").is_dir():
        if out.exists():
            shutil.rmtree(out)
        started_s = time.perf_counter()
        train(_config(work, [*STUDENTS[name], *more]), out)
        print(f"{name}: trained in {time.perf_counter() - started_s:.0f} s", file=sys.stderr)
    return out / "final"


def _config(work: Path, overrides: Sequence[str]) -> RunConfig:
    world = work / "world"
    paths = [
        f"student.checkpoint={MODELS / 'student'}",
        *(f"teachers.{name}={MODELS / name}" for name in CAPABILITIES),
        f"data.train=[{world / 'train.json'}]",
        f"data.unlabelled=[{world / 'unlabelled.json'}]",
        f"data.validation={world / 'validation.json'}",
    ]
    return load_config(CONFIG, [*paths, *overrides])


def _print_cost(work: Path, num_steps: int) -> None:
    """Steps in turns, so that a busy minute of the machine hits both alike; the first of each is not counted."""
    trainers = {name: _trainer(_config(work, STUDENTS[name])) for name in ("plain", "int4")}
    seconds: dict[str, list[float]] = {name: [] for name in trainers}
    for _ in range(num_steps + 1):
        for name, trainer in trainers.items():
            started_s = time.process_time()
            trainer.step()
            seconds[name].append(time.process_time() - started_s)
    medians = {name: statistics.median(of[1:]) for name, of in seconds.items()}
    print_about(about(torch.get_num_threads()))
    told = ", ".join(f"{name} {median:.3f}" for name, median in medians.items())
    print(f"CPU s a step, median of {num_steps}: {told}; {medians['int4'] / medians['plain']:.2f} times")


def _trainer(config: RunConfig) -> Trainer:
    return Trainer(config, read_training_samples(config))


def _rounded(final: Path, out: Path) -> Path:
    """A copy with the scales of rounding to the nearest, in the forms of the other students."""
    if not out.exists():
        shutil.copytree(final, out)
    layers = linear_layers(load_model(out))
    weights = {name: layer.weight.detach().flatten(1) for name, layer in layers.items()}  # type: ignore[operator]
    forms = forms_of({name: weight.shape[1] for name, weight in weights.items()}, WeightForm(4, 32), int8=["lm_head"])
    write_scales(out, {name: quantized(weights[name], form).scales for name, form in forms.items()}, forms)
    return out


def _scored(final: Path, out: Path, samples: Sequence[Sample], reference: Sequence[Sample]) -> EvaluationReport:
    report = evaluate(open_answerer(final), samples, reference=reference)
    write_report(report, out)
    return report


def _print_table(reports: Mapping[str, EvaluationReport], samples: Sequence[Sample]) -> None:
    """Accuracy with intervals; against `plain`, in points, with the paired interval."""
    print("| student | " + " | ".join(CAPABILITIES) + " | fewer points than plain |")
    print("| --- | " + " | ".join("---" for _ in CAPABILITIES) + " | --- |")
    for name, report in reports.items():
        scores = [format_score(report.row(capability)) for capability in CAPABILITIES]
        against = [] if name == "plain" or "plain" not in reports else _losses(report, reports["plain"], samples)
        print(f"| {name} | " + " | ".join([*scores, ", ".join(against)]) + " |")


def _losses(report: EvaluationReport, plain: EvaluationReport, samples: Sequence[Sample]) -> list[str]:
    ours, theirs = ([prediction.correct for prediction in one.predictions] for one in (report, plain))
    change = np.array(theirs, np.float64) - np.array(ours, np.float64)
    found = []
    for capability in CAPABILITIES:
        chosen = [index for index, sample in enumerate(samples) if sample.capability == capability]
        frames = np.unique([str(samples[index].images) for index in chosen], return_inverse=True)[1]
        counts, sums = np.bincount(frames), np.bincount(frames, change[chosen])
        draws = np.random.default_rng(0).integers(0, len(counts), (RESAMPLES, len(counts)))
        low, high = np.percentile(sums[draws].sum(1) / counts[draws].sum(1), [2.5, 97.5])
        found.append(f"{capability} {100 * change[chosen].mean():.1f} [{100 * low:.1f}, {100 * high:.1f}]")
    return found


if __name__ == "__main__":
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    raise SystemExit(main())
