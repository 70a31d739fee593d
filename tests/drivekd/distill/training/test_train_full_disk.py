"""A disk that fills while a training run saves, logs or caches: it is said, nothing is half-written, a resume is bit-equal."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from safetensors import SafetensorError
from tiny_run import TinyRun
from train_cases import STEPS, assert_same_run, configured, leftovers, names

from drivekd.distill.teachers.store import BlockStore
from drivekd.distill.training import checkpoint
from drivekd.distill.training.train import train
from drivekd.errors import DrivekdError, TrainingError
from drivekd.log import MetricsFile

pytestmark = [pytest.mark.e2e, pytest.mark.usefixtures("one_thread")]

FULL = {
    "OSError": OSError(errno.ENOSPC, "No space left on device"),
    "SafetensorError": SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
}


@pytest.mark.parametrize("error", FULL.values(), ids=FULL)
def test_a_disk_that_fills_while_saving_is_said_and_costs_nothing(
    tiny_run: TinyRun, uninterrupted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    calls = 0

    def save_file(tensors: dict[str, Any], path: Path) -> None:
        nonlocal calls
        calls += 1
        if calls == 2:
            path.write_bytes(b"half")
            raise error
        real(tensors, path)

    real = checkpoint.save_file
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save_file", save_file)
        with pytest.raises(DrivekdError, match=r"step-4: no space left on the disk; nothing was left half-written"):
            train(configured(tiny_run, tmp_path / "run"), tmp_path / "run")
    assert names(tmp_path / "run" / "checkpoints") == ["step-2"]
    assert leftovers(tmp_path / "run") == []
    train(configured(tiny_run, tmp_path / "run"), tmp_path / "run", resume=True)
    assert_same_run(tmp_path / "run", uninterrupted)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own; tests size it."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", disk]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("needs root to mount a small tmpfs")
    yield disk
    subprocess.run(["umount", disk], check=True)


def test_a_disk_that_is_really_full(tiny_run: TinyRun, uninterrupted: Path, tmp_path: Path, small_disk: Path) -> None:
    config = configured(tiny_run, tmp_path / "run")  # the cache, which leaves a gigabyte free, is on another disk
    one = sum(path.stat().st_size for path in (uninterrupted / "checkpoints" / "step-10").iterdir())
    subprocess.run(["mount", "-o", f"remount,size={one * 3 // 2}", small_disk], check=True)
    with pytest.raises(DrivekdError, match=r"step-4: no space left on the disk"):
        train(config, small_disk / "run")
    assert names(small_disk / "run" / "checkpoints") == ["step-2"]
    assert leftovers(small_disk) == []
    subprocess.run(["mount", "-o", f"remount,size={one * 9}", small_disk], check=True)
    train(config, small_disk / "run", resume=True)
    assert_same_run(small_disk / "run", uninterrupted)


def test_a_disk_that_fills_under_the_metrics_is_said_and_costs_nothing(
    tiny_run: TinyRun, uninterrupted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(self: MetricsFile, record: dict[str, Any]) -> None:
        if record["step"] == 5:
            self._file.write('{"step": 5, "lo')  # what still had room
            raise FULL["OSError"]
        real(self, record)

    real = MetricsFile.write
    with monkeypatch.context() as patch:
        patch.setattr(MetricsFile, "write", write)
        with pytest.raises(TrainingError, match=r"run: no space left on the disk for metrics and logs; free space and --resume"):
            train(configured(tiny_run, tmp_path / "run"), tmp_path / "run")
    train(configured(tiny_run, tmp_path / "run"), tmp_path / "run", resume=True)
    assert_same_run(tmp_path / "run", uninterrupted)


def test_a_disk_that_fills_under_the_cache_costs_nothing(
    tiny_run: TinyRun, uninterrupted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The checkpoint is written before the cache is flushed."""

    def flush(self: BlockStore) -> None:
        raise TrainingError("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(BlockStore, "flush", flush)
        with pytest.raises(TrainingError, match="the disk is full"):
            train(configured(tiny_run, tmp_path / "run"), tmp_path / "run")
    assert names(tmp_path / "run" / "checkpoints") == ["step-2"]
    assert train(configured(tiny_run, tmp_path / "run"), tmp_path / "run", resume=True).steps == STEPS
