"""Engines that take turns, and whether they compute one model."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.runtime.engine_process import cosine, turn_ratios


def test_ratio_is_of_turns_that_followed_each_other() -> None:
    """A machine that slows down for both alike does not move it."""
    slow_spell = [1.0, 9.0, 9.0, 1.0]
    assert turn_ratios([2 * one for one in slow_spell], slow_spell) == {"ratio": 2, "ratio_min": 2, "ratio_max": 2}


def test_cosine_is_that_of_the_worst_row() -> None:
    first, second = np.array([[1, 0], [3, 4]], np.float32), np.array([[2, 0], [4, 3]], np.float32)
    assert cosine(first[0], second[0]) == pytest.approx(1)
    assert cosine(first, second) == pytest.approx(24 / 25)
