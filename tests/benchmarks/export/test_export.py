"""The export benchmark from the command line, at a size for seconds; its figures mean nothing here."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from command_fixtures import SmallExport

pytestmark = pytest.mark.e2e


def test_export_tells_seconds_memory_sizes_and_parity(small_export: SmallExport) -> None:
    bundle, exported = small_export.bundle, small_export.row
    assert exported["bundle_bytes"] == sum(path.stat().st_size for path in bundle.iterdir())
    stages = {name: found["seconds"] for name, found in exported["stages"].items()}
    assert {"load_source", "write_graphs", "convert", "measure_parity", "rest"} <= set(stages)
    assert sum(stages.values()) == pytest.approx(exported["export_s"])  # nothing twice, nothing left out
    assert stages["rest"] >= 0
    assert exported["seconds"] >= exported["export_s"]  # the process, imports included
    assert exported["peak_rss_mb"] == max(found["peak_mb"] for found in exported["stages"].values()) > 0
    assert exported["worst_parity"]["passed"]


def test_a_stage_that_is_called_twice_counts_twice() -> None:
    from benchmarks.export.export import _timed

    stages = {"rest": {"seconds": 0.0, "peak_mb": 0.0}}
    nap = _timed("nap", time.sleep, stages)
    nap(0.02)
    nap(0.02)
    assert stages["nap"]["seconds"] >= 0.04
