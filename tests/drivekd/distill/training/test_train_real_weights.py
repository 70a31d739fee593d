"""Training on pretrained weights: every signal at once, adapters that are merged and exported, a run that stops and goes on."""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_run import TinyRun
from train_cases import assert_same_run

from drivekd.config import RunConfig
from drivekd.distill.training.train import train
from drivekd.log import read_metrics
from drivekd.models import load_model
from drivekd.sample import CAPABILITIES

pytestmark = [pytest.mark.numerics, pytest.mark.real]

ADAPTERS = ("student.train=[language_model]", "student.lora.rank=8", "optimizer.learning_rate=1e-3")
SMALL = ("training.batch_size=3", "training.micro_batch_size=1", "training.unlabelled_batch_size=1")


@pytest.fixture(scope="session")
def perturbed(real_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher that attends otherwise: of the student's own maps there is nothing to learn."""
    folder = tmp_path_factory.mktemp("real-teacher") / "teacher"
    shutil.copytree(real_checkpoint, folder)
    model, generator = load_model(real_checkpoint), torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith(("q_proj.weight", "k_proj.weight")):
                weight.add_(torch.randn(weight.shape, generator=generator) * weight.std() * 0.1)
    model.save_pretrained(folder)
    return folder


def configured(run: TinyRun, student: Path, teacher: Path, *more: str) -> RunConfig:
    teachers = [f"teachers.{name}={teacher}" for name in CAPABILITIES]
    return run.config(f"student.checkpoint={student}", *teachers, *SMALL, *more)


def numbers(record: Mapping[str, Any]) -> list[float]:
    """All of a step's record."""
    nested = [numbers(value) for value in record.values() if isinstance(value, dict)]
    own = [float(value) for value in record.values() if isinstance(value, (int, float))]
    return own + [number for part in nested for number in part]


def test_all_signals_at_once_are_finite(tiny_run: TinyRun, real_checkpoint: Path, perturbed: Path, tmp_path: Path) -> None:
    """Of 30 layers of bf16-trained weights: no loss, norm or cosine is NaN, and adapters move."""
    train(configured(tiny_run, real_checkpoint, perturbed, *ADAPTERS, "training.steps=2"), tmp_path / "run")
    first, second = read_metrics(tmp_path / "run" / "metrics.jsonl")
    for record in (first, second):
        assert all(map(math.isfinite, numbers(record)))
        assert {name for name, loss in record["loss"].items() if loss > 0} == {"ce", *CAPABILITIES}
    assert second["loss"]["ce"] != first["loss"]["ce"]


@pytest.mark.slow
def test_a_stopped_run_goes_on_to_the_bit(tiny_run: TinyRun, real_checkpoint: Path, perturbed: Path, tmp_path: Path) -> None:
    """Every weight of the language model trains: 7 GB of memory, and 4 GB of disk."""
    settings = ("student.train=[language_model]", "training.checkpoint_every_steps=1", "optimizer.learning_rate=5e-5")
    config = configured(tiny_run, real_checkpoint, perturbed, *settings, "training.steps=2")
    train(config, tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "stopped")
    shutil.rmtree(tmp_path / "stopped" / "final")
    shutil.rmtree(tmp_path / "stopped" / "checkpoints" / "step-2")
    train(config, tmp_path / "stopped", resume=True)
    assert_same_run(tmp_path / "stopped", tmp_path / "whole", steps=2)


@pytest.mark.slow
def test_merged_adapters_are_exported(tiny_run: TinyRun, real_checkpoint: Path, perturbed: Path, tmp_path: Path) -> None:
    """No bundle is written whose fp32 tokens are not the merged model's."""
    from drivekd.export import bundle_from_checkpoint
    from drivekd.runtime import read_bundle

    train(configured(tiny_run, real_checkpoint, perturbed, *ADAPTERS, "training.steps=2"), tmp_path / "run")
    bundle_from_checkpoint(tmp_path / "run", tmp_path / "bundle")
    manifest = read_bundle(tmp_path / "bundle").manifest
    assert manifest.source["kind"] == "lora"
    assert all(row["passed"] for row in manifest.parity)
