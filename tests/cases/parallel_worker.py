"""What test_parallel.py runs in two processes at once; started by two_processes.run_two, which imports it anew in each."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from tiny_run import TinyRun, start_trainer

from drivekd.answered import Given
from drivekd.distill.training.parallel import join
from drivekd.distill.training.sharding import gathered
from drivekd.distill.training.trainer import Trainer
from drivekd.errors import DrivekdError, TrainingError
from drivekd.sample import Sample

STEPS = 3
PLACEMENTS = ("ddp", "fsdp2")


def trained(trainer: Trainer) -> dict[str, Any]:
    """Three steps and a validation: everything that must not depend on the number of processes."""
    before = gathered(trainer.student.state_dict(), keep=True)
    before = {name: value.clone() for name, value in before.items()}
    with mock.patch("drivekd.distill.training.accuracy.scores", counted):
        accuracy = trainer.validation_accuracy()
    records = [trainer.step() for _ in range(STEPS)]
    validation = trainer.validate()
    return {
        "before": before,
        "weights": gathered(trainer.student.state_dict(), keep=True),
        "records": records,
        "validation": validation,
        "accuracy": accuracy,
    }


def counted(samples: Sequence[Sample], given: Sequence[Given]) -> list[float]:
    """What an untrained model's answers can be told apart by."""
    return [len(sample.question) * one.tokens - (one.mean_logprob or 0) for sample, one in zip(samples, given, strict=True)]


def run(rank: int, port: int, folder: Path, out: Path, variants: dict[str, tuple[str, ...]]) -> None:
    """Write out/<variant>-<placement>-<rank>.pt, out/diverged-<placement>-<rank>.pt and out/agreement-<rank>.pt."""
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1", "FSDP_VERSION": "2"}
    for name, overrides in variants.items():
        for placement in PLACEMENTS:
            os.environ["ACCELERATE_USE_FSDP"] = str(placement == "fsdp2").lower()
            torch.save(trained(start_trainer(TinyRun(folder), *overrides)), out / f"{name}-{placement}-{rank}.pt")
    for placement in PLACEMENTS:
        os.environ["ACCELERATE_USE_FSDP"] = str(placement == "fsdp2").lower()
        torch.save(
            diverged(start_trainer(TinyRun(folder), "optimizer.learning_rate=1e30")), out / f"diverged-{placement}-{rank}.pt"
        )
    os.environ["ACCELERATE_USE_FSDP"] = "false"
    torch.save(agreement(), out / f"agreement-{rank}.pt")
    join("cpu").leave()


def diverged(trainer: Trainer) -> tuple[int, str]:
    """Step until it fails: steps done, and what was said."""
    try:
        for _ in range(STEPS):
            trainer.step()
    except TrainingError as error:
        return trainer.steps_done, str(error)
    return trainer.steps_done, ""


def agreement() -> dict[str, Any]:
    """What each process sees of the others."""
    parallel = join("cpu")
    found: dict[str, Any] = {"rank": parallel.rank, "is_main": parallel.is_main, "part": list(parallel.part_of(range(5)))}
    found["sums"] = parallel.sums([1.0 + parallel.rank, 0.5])
    found["any"] = [parallel.any(flag) for flag in (parallel.rank == 1, False)]
    drawn = torch.full((2,), float(parallel.rank + 7))
    parallel.same_start([drawn])
    found["drawn"] = drawn.tolist()
    try:
        with parallel.agreed():
            if parallel.rank == 1:
                raise DrivekdError("records.json, record 7: gone")
    except DrivekdError as error:
        found["failure"] = (type(error) is TrainingError, str(error))
    with parallel.agreed():
        found["after"] = True
    return found
