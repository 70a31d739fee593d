"""The benchmark of a training step from the command line, at a size for seconds; its figures mean nothing here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from command_fixtures import RunBenchmark

    from benchmarks.distill.models import BenchmarkFolder

pytestmark = pytest.mark.e2e


def test_a_variant_is_timed_in_a_process_of_its_own(
    benchmark_folder: BenchmarkFolder, run_benchmark: RunBenchmark, tmp_path: Path
) -> None:
    out = tmp_path / "step.jsonl"
    flags = ("--work", benchmark_folder.path, "--repeats", 1, "--threads", 1, "--variants", "released-mixed", "--out", out)
    run_benchmark("-m", "benchmarks.distill.step", *flags)
    (row,) = [json.loads(line) for line in out.read_text().splitlines()]
    assert row["variant"] == row["against"] == "released-mixed"
    assert row["times_faster"] == row["memory_share"] == 1
    assert row["timed_steps"] == 1
    assert row["median_s"] > 0
    assert 0 < row["weights_mb"] < row["loaded_mb"] <= row["peak_mb"]
