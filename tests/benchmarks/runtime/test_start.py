"""The start benchmark from the command line, at a size for seconds; its figures mean nothing here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from command_fixtures import RunBenchmark, SmallExport

pytestmark = pytest.mark.e2e


def test_every_stage_has_a_row_with_and_without_a_stored_verdict(
    small_export: SmallExport, run_benchmark: RunBenchmark, tmp_path: Path
) -> None:
    out = tmp_path / "start.jsonl"
    flags = ("--bundle", small_export.bundle, "--repeats", 1, "--threads", 1, "--cameras", 1, "--out", out)
    run_benchmark("-m", "benchmarks.runtime.start", *flags)
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    stages = ["import", "verify", "load", "gate", "frame", "start"]
    assert [(row["gate"], row["stage"]) for row in rows] == [(gate, name) for gate in ("replayed", "stored") for name in stages]
    seconds = {(row["gate"], row["stage"]): row["seconds"][0] for row in rows}
    for gate in ("replayed", "stored"):
        assert seconds[gate, "start"] == pytest.approx(sum(seconds[gate, name] for name in ("verify", "load", "gate")))
    assert seconds["stored", "gate"] < seconds["replayed", "gate"]
