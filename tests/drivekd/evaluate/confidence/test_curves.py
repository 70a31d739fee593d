"""Calibration error and risk by coverage, by hand and by their properties."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from drivekd.evaluate.confidence.curves import Bin, area_under, calibration_error, equal_mass_bins, error_by_chance, risk_coverage

SURE = np.asarray([0.9, 0.9, 0.6, 0.2])
RIGHT = np.asarray([True, False, True, False])


def test_by_hand() -> None:
    bins = equal_mass_bins(SURE, RIGHT, 2)
    assert bins == [Bin(2, pytest.approx(0.4), 0.5), Bin(2, pytest.approx(0.9), 0.5)]
    assert calibration_error(bins) == pytest.approx((0.1 + 0.4) / 2)
    points = risk_coverage(SURE, RIGHT)
    assert points == [(0.5, 0.5), (0.75, pytest.approx(1 / 3)), (1.0, 0.5)], "equally sure answers come together"
    assert area_under(points) == pytest.approx(0.5 * 0.5 + 0.25 / 3 + 0.25 * 0.5)


def test_equal_confidences_are_never_parted() -> None:
    assert equal_mass_bins(np.full(10, 0.7), np.arange(10) < 7, 5) == [Bin(10, pytest.approx(0.7), 0.7)]
    assert calibration_error(equal_mass_bins(np.full(10, 0.7), np.arange(10) < 7, 5)) == pytest.approx(0)


def test_a_perfect_confidence_has_no_error_and_the_least_area() -> None:
    right = np.arange(100) < 60
    perfect = risk_coverage(right.astype(float), right)
    assert perfect == [(0.6, 0.0), (1.0, 0.4)]
    assert calibration_error(equal_mass_bins(right.astype(float), right, 15)) == 0
    assert area_under(risk_coverage(1 - right.astype(float), right)) > area_under(perfect)


def test_what_chance_alone_shows() -> None:
    """A thousand draws of answers that are right as often as their confidence says."""
    rng = np.random.default_rng(0)
    sure = rng.random(300)
    bins = [equal_mass_bins(sure, rng.random(300) < sure, 10) for _ in range(1000)]
    assert np.mean([calibration_error(one) for one in bins]) == pytest.approx(error_by_chance(bins[0]), rel=0.05)


@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=50), st.integers(1, 20))
def test_bins_hold_every_answer_once_and_errors_are_shares(drawn: list[tuple[float, bool]], num_bins: int) -> None:
    sure, right = np.asarray([one for one, _ in drawn]), np.asarray([one for _, one in drawn])
    bins = equal_mass_bins(sure, right, num_bins)
    assert sum(one.n for one in bins) == len(drawn) and len(bins) <= num_bins
    assert sum(one.n * one.accuracy for one in bins) == pytest.approx(right.sum())
    assert 0 <= calibration_error(bins) <= 1
    points = risk_coverage(sure, right)
    assert points[-1] == (1.0, pytest.approx((~right).mean()))
    assert 0 <= area_under(points) <= 1
