"""The teachers' cache of a training run: an error does not lose it, and once it is full no teacher is asked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tiny_run import TinyRun
from train_cases import configured

from drivekd.data.batch import Batch
from drivekd.distill.maps import Maps
from drivekd.distill.teachers.teachers import Teacher
from drivekd.distill.training.train import train
from drivekd.distill.training.trainer import Trainer
from drivekd.errors import TrainingError

pytestmark = [pytest.mark.e2e, pytest.mark.usefixtures("one_thread")]


def shards(out: Path) -> list[Path]:
    return sorted((out.parent / "cache").rglob("shard-*"))


def test_what_was_cached_survives_an_error(tiny_run: TinyRun, tmp_path: Path) -> None:
    out = tmp_path / "run"
    config = configured(tiny_run, out, "optimizer.learning_rate=1e30", "training.checkpoint_every_steps=99")
    with pytest.raises(TrainingError):
        train(config, out)
    assert shards(out)


@pytest.fixture
def questions_to_teachers(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by the number of samples whenever a teacher runs."""
    asked: list[int] = []
    real = Teacher.maps

    def maps(self: Teacher, batch: Batch, signals: Any) -> Maps:
        asked.append(len(batch.samples))
        return real(self, batch, signals)

    monkeypatch.setattr(Teacher, "maps", maps)
    return asked


def test_a_cache_filled_first_leaves_nothing_to_ask(
    tiny_run: TinyRun, tmp_path: Path, questions_to_teachers: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    config = configured(tiny_run, out, f"teachers={{planning: {tiny_run.teacher}}}", "cache.fill_first=true", "training.steps=3")
    real = Trainer.fill_cache

    def interrupted(self: Trainer) -> None:
        real(self)
        raise KeyboardInterrupt  # what was asked is kept

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "fill_cache", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train(config, out)
    assert not out.exists()  # nothing to resume
    assert shards(out)
    assert sum(questions_to_teachers) > 0
    questions_to_teachers.clear()
    assert train(config, out).steps == 3
    assert questions_to_teachers == []
