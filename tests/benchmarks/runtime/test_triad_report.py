"""What turns say, on turns made up."""

from __future__ import annotations

import pytest

from benchmarks.runtime.triad_report import decode_summary


def test_around_is_what_was_not_within_the_engine_call() -> None:
    turn = {"decode_s": 1.0, "steps": 10, "decoded": 10, "engine_s": 0.9, "around_cpu_s": 0.05, "cpu_s": 1.0}
    bound = {**turn, "decode_s": 0.8}
    row = {"table": "decode", "engine": "drivekd", "turns": [turn], "bound": [bound], "peer": [turn], "rss_mb": 1, "peak_mb": 1}
    found = decode_summary(row)
    assert found["around"] == pytest.approx(0.1)
    assert found["around_cpu_ms"] == pytest.approx(5)
    assert found["beyond_bound"] == pytest.approx(0.2)
    assert found["ratio"] == 1
