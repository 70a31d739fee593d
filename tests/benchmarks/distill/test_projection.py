"""The projection benchmark from the command line, at a size for seconds; its figures mean nothing here."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from command_fixtures import RunBenchmark

pytestmark = pytest.mark.e2e


def test_both_ways_end_with_one_update(run_benchmark: RunBenchmark) -> None:
    printed = run_benchmark("-m", "benchmarks.distill.projection", "--parameters", 20_000, "--repeats", 1, "--threads", 1)
    assert printed.stdout.count("largest relative difference") == 1
    difference = float(printed.stdout.partition('"largest_relative_difference": ')[2].partition(",")[0])
    assert difference <= 1e-5  # norms and samples of fp32 vectors, projected in another order
