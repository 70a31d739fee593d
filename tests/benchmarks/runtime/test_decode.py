"""The decode benchmark from the command line, at a size for seconds; its figures mean nothing here."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from command_fixtures import RunBenchmark, SmallExport

pytestmark = pytest.mark.e2e

TOKENS = 6


def test_decode_times_a_bundle_in_a_process_of_its_own(small_export: SmallExport, run_benchmark: RunBenchmark) -> None:
    printed = run_benchmark(
        *("-m", "benchmarks.runtime.decode", "--work", small_export.folder, "--bundle", small_export.bundle),
        *("--prompts", "12,20", "--tokens", TOKENS, "--turn", 4, "--repeats", 2, "--threads", 1),
    )
    assert [row["prompt"] for row in printed.rows] == [12, 20]
    for row in printed.rows:
        assert row["timed_steps"] == 2 * TOKENS
        assert 0 < row["p10_ms"] <= row["p50_ms"] <= row["p95_ms"]
        assert row["tokens_per_s"] == pytest.approx(1000 / row["p50_ms"])
        assert 0 < row["rss_mb"] <= row["peak_mb"]


def test_ratio_is_of_turns_that_followed_each_other() -> None:
    """A machine that slows down for both alike does not move it."""
    from benchmarks.runtime.decode import _against

    def run(milliseconds: list[float]) -> dict[str, Any]:
        return {"steps": [one / 1e3 for one in milliseconds], "cpu_s": sum(milliseconds) / 1e3, "prompt_s": 1.0, "tokens": [1]}

    slow_spell = [1, 1, 9, 9, 9, 9, 1, 1]
    found = _against([run([2.0 * one for one in slow_spell])], [run([1.0 * one for one in slow_spell])], 2)
    assert [found[key] for key in ("ratio", "ratio_min", "ratio_max")] == pytest.approx([2, 2, 2])
