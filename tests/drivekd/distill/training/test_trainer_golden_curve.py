"""Twenty steps of the tiny pair of each family, term by term, against a text file: what should not move numbers does not.

After a change that should: python tests/drivekd/distill/training/test_trainer_golden_curve.py --write
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from places import TESTS

sys.path.insert(0, str(Path(__file__).parents[4] / "cases"))  # when run as a script

from tiny_run import FAMILIES, TinyRun, make_tokenizer, start_trainer, write_tiny_run

from drivekd.distill.signals import Signal
from drivekd.distill.training import objectives

pytestmark = [pytest.mark.numerics, pytest.mark.usefixtures("one_thread")]

GOLDEN = TESTS / "golden"
SCRIPT = "tests/drivekd/distill/training/test_trainer_golden_curve.py"
STEPS = 20
RTOL = 1e-3  # other CPUs and BLAS builds round otherwise, and 20 steps of training make more of it
# Packs, two teachers a sample, relative weights, both AGP stages between own anchors: everything that could move a number.
SETTINGS = (
    "training.packing=frame",
    "training.batch_size=4",
    "training.unlabelled_batch_size=2",
    "training.micro_batch_size=3",
    f"training.steps={STEPS}",
    "signals.mixing=released",
    "projection.anchor=own",
    "optimizer.learning_rate=1e-3",
    "optimizer.schedule=cosine",
    "optimizer.warmup_steps=3",
    "optimizer.clip_norm=5",
)

Curve = dict[tuple[int, str], float]


def measured_curve(run: TinyRun, steps: int = STEPS) -> Curve:
    """(step, term) -> mean loss; and the update's norm before clipping, which sees weights and projection, too."""
    trainer = start_trainer(run, *SETTINGS)
    curve: Curve = {}
    for step in range(1, steps + 1):
        record = trainer.step()
        curve |= {(step, name): value for name, value in record["loss"].items()}
        curve[step, "update_norm"] = record["update_norm"]
    return curve


def golden_curve(family: str) -> Curve:
    lines = (GOLDEN / f"{family}.txt").read_text().splitlines()
    rows = [line.split() for line in lines if not line.startswith("#")]
    return {(int(step), name): float(value) for step, name, value in rows}


def write_curve(family: str, curve: Curve) -> None:
    GOLDEN.mkdir(exist_ok=True)
    head = f"# {STEPS} steps of the tiny {family} pair: step, term, value. Written by {SCRIPT} --write\n"
    lines = [f"{step:2d} {name:<14} {value:.7e}\n" for (step, name), value in curve.items()]
    (GOLDEN / f"{family}.txt").write_text(head + "".join(lines))


def assert_on_curve(found: Curve, expected: Curve) -> None:
    """Raises AssertionError naming the first step and term that left it."""
    for key, value in found.items():
        assert key in expected, f"step {key[0]}: the term {key[1]} is new"
        step, name = key
        off = abs(value - expected[key]) / abs(expected[key])
        assert off <= RTOL, f"step {step}: {name} is {value:.7e}, was {expected[key]:.7e} ({off:.1e} off, {RTOL:.0e} allowed)"


@pytest.mark.parametrize("family", FAMILIES)
def test_the_loss_curve_is_the_golden_one(family: str, request: pytest.FixtureRequest) -> None:
    run = request.getfixturevalue("tiny_run" if family == "internvl" else "tiny_qwen_run")
    found, expected = measured_curve(run), golden_curve(family)
    assert found.keys() == expected.keys()
    assert_on_curve(found, expected)


@contextmanager
def louder(monkeypatch: pytest.MonkeyPatch, capability: str, factor: float) -> Iterator[None]:
    """One capability's signal is off by a factor."""
    honest = objectives.signal_loss

    def loss(signal: Signal, *others: Any) -> torch.Tensor:
        return honest(signal, *others) * (factor if signal.capability == capability else 1.0)

    with monkeypatch.context() as patch:
        patch.setattr(objectives, "signal_loss", loss)
        yield


@pytest.mark.parametrize("capability", ["perception", "reasoning", "planning"])
def test_one_percent_of_one_signal_leaves_the_curve(tiny_run: TinyRun, monkeypatch: pytest.MonkeyPatch, capability: str) -> None:
    """Otherwise the golden curve guards nothing."""
    expected = golden_curve("internvl")
    with louder(monkeypatch, capability, 1.01):
        found = measured_curve(tiny_run, steps=2)
    with pytest.raises(AssertionError, match=f"step [12]: {capability} is"):
        assert_on_curve(found, expected)


def main() -> None:
    torch.set_num_threads(1)
    for family in FAMILIES:
        with tempfile.TemporaryDirectory() as folder:
            write_curve(family, measured_curve(write_tiny_run(Path(folder), make_tokenizer(family), family)))


if __name__ == "__main__":
    if sys.argv[1:] != ["--write"]:
        sys.exit("usage: test_trainer_golden_curve.py --write")
    main()
