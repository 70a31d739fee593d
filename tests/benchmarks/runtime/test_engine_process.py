"""Engines that take turns."""

from __future__ import annotations

from benchmarks.runtime.engine_process import turn_ratios


def test_ratio_is_of_turns_that_followed_each_other() -> None:
    """A machine that slows down for both alike does not move it."""
    slow_spell = [1.0, 9.0, 9.0, 1.0]
    assert turn_ratios([2 * one for one in slow_spell], slow_spell) == {"ratio": 2, "ratio_min": 2, "ratio_max": 2}
