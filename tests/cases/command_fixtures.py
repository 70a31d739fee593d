"""Commands in this process and in ones of their own.

Made once a session: an int4 bundle of the export benchmark's small size, by the benchmark itself; its models of a training
step; a finished training run; the ROS workspace.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import pytest
from places import ROOT
from tiny_run import TinyRun

from drivekd.log import logger

if TYPE_CHECKING:
    from benchmarks.distill.models import BenchmarkFolder

Run: TypeAlias = Callable[..., tuple[int, str, str]]
RunBenchmark: TypeAlias = Callable[..., "Printed"]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Run]:
    """Call `drivekd ARGUMENTS` in this process -> (exit code, stdout, stderr). A process of its own would import torch anew."""
    from drivekd.cli import main

    log = list(logger.handlers), logger.level, logger.propagate

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["drivekd", *map(str, arguments)])
        code: Any = 0
        try:
            main()
        except SystemExit as exit:
            code = exit.code
        return code or 0, *capsys.readouterr()

    yield call
    logger.handlers[:], logger.level, logger.propagate = log


@dataclass(frozen=True)
class Printed:
    """rows: the JSON lines that a script printed."""

    rows: list[dict[str, Any]]
    stdout: str
    stderr: str


@pytest.fixture(scope="session")
def run_benchmark() -> RunBenchmark:
    """run_benchmark("-m", "benchmarks.export.export", "--work", folder, ...) runs a script to its good end, as documented."""
    return _run


def _run(*words: object) -> Printed:
    command = [sys.executable, *map(str, words)]
    environment = {**os.environ, "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, cwd=ROOT, encoding="utf-8")
    assert done.returncode == 0, done.stderr
    rows = [row for line in done.stdout.splitlines() if line.startswith("{") and "machine" in (row := json.loads(line))]
    return Printed(rows, done.stdout, done.stderr)


@dataclass(frozen=True)
class SmallExport:
    """folder: has the checkpoint `small` and the bundle. row: what the benchmark said of the export."""

    folder: Path
    bundle: Path
    row: dict[str, Any]


@pytest.fixture(scope="session")
def small_export(tmp_path_factory: pytest.TempPathFactory, run_benchmark: RunBenchmark) -> SmallExport:
    folder = tmp_path_factory.mktemp("small-export")
    flags = ("--work", folder, "--size", "small", "--precision", "int4", "--threads", 1)
    (row,) = run_benchmark("-m", "benchmarks.export.export", *flags).rows
    return SmallExport(folder, folder / "bundle-small-int4", row)


@pytest.fixture(scope="session")
def benchmark_folder(tmp_path_factory: pytest.TempPathFactory) -> BenchmarkFolder:
    """What benchmarks/distill steps on, at size small: a student, three teachers of their own, records."""
    from benchmarks.distill.models import SIZES, Recipe  # heavy, and most files here want none
    from benchmarks.distill.records import make_benchmark

    return make_benchmark(tmp_path_factory.mktemp("benchmark"), Recipe(SIZES["small"]))


@pytest.fixture(scope="session")
def uninterrupted(tiny_run: TinyRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished training run of train_cases.py; tests copy it before they break it."""
    from train_cases import configured  # torch, and most files here want none

    from drivekd.distill.training.train import train

    out = tmp_path_factory.mktemp("runs") / "run"
    train(configured(tiny_run, out), out)
    return out


@pytest.fixture
def broken(uninterrupted: Path, tmp_path: Path) -> Path:
    """A copy of the run and its cache, as if it had stopped before final/."""
    out = tmp_path / "run"
    shutil.copytree(uninterrupted.parent, tmp_path, dirs_exist_ok=True)
    shutil.rmtree(out / "final")
    return out


@pytest.fixture(scope="session")
def install(pytestconfig: pytest.Config) -> Path:
    """The colcon install folder; built once and kept in pytest's cache while the sources stay the same."""
    from drivekd.demo.ros_workspace import build_workspace

    if importlib.util.find_spec("rclpy") is None:
        if os.environ.get("CI"):
            pytest.fail("needs ROS 2: rclpy is missing, and in CI that is a failure")
        pytest.skip("needs ROS 2 (pip install -e '.[ros-test]')")
    cache = Path(pytestconfig.cache.mkdir("drivekd_ros_workspace"))
    return build_workspace(ROOT / "ros2_ws", cache, log=cache / "build.log")
