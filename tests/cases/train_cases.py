"""What the tests of training runs share: a short run whose resume must repeat everything, and how to see what it left.

"Bit-equal" is always against one uninterrupted run of the same configuration on one CPU thread.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from tiny_run import TinyRun

from drivekd.config import RunConfig
from drivekd.log import read_metrics
from drivekd.sample import CAPABILITIES

STEPS = 12
# Whatever a resume must repeat is on: own anchors (stage 2 then settles conflicts in a random order), packs, dynamic weights
LENGTH = (
    *(f"training.steps={STEPS}", "training.batch_size=3", "training.micro_batch_size=2", "training.packing=frame"),
    *("projection.anchor=own", "signals.weighting=dynamic", "signals.dynamic.learning_rate=0.01"),
    *(f"signals.{name}.weight=20" for name in CAPABILITIES),
)


def overrides(out: Path) -> tuple[str, ...]:
    """Of a run in `out`; its teachers' cache lies beside it."""
    return (*LENGTH, f"cache.directory={out.parent / 'cache'}")


def configured(tiny_run: TinyRun, out: Path, *more: str) -> RunConfig:
    return tiny_run.config(*overrides(out), *more)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def leftovers(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.name.endswith(".tmp")]


def steps_of(out: Path) -> list[int]:
    return [record["step"] for record in read_metrics(out / "metrics.jsonl")]


def same_weights(a: Path, b: Path) -> bool:
    ours, theirs = load_file(a / "final" / "model.safetensors"), load_file(b / "final" / "model.safetensors")
    return set(ours) == set(theirs) and all(torch.equal(ours[name], theirs[name]) for name in ours)


def timeless_records(out: Path) -> list[dict[str, Any]]:
    records = read_metrics(out / "metrics.jsonl")
    return [{key: value for key, value in record.items() if key not in ("seconds", "tokens_per_s")} for record in records]


def assert_same_run(found: Path, expected: Path, steps: int = STEPS) -> None:
    """Equal to the bit: final weights, optimizer state, and every number of every step but its time."""
    assert same_weights(found, expected)
    moments = [load_file(run / "checkpoints" / f"step-{steps}" / "optimizer.safetensors") for run in (found, expected)]
    assert all(torch.equal(moments[0][name], moments[1][name]) for name in moments[1])
    assert timeless_records(found) == timeless_records(expected)
    assert leftovers(found) == []


def scalars(out: Path, tag: str) -> list[tuple[int, float]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = EventAccumulator(str(out / "tensorboard"))
    board.Reload()
    return [(event.step, event.value) for event in board.Scalars(tag)]
