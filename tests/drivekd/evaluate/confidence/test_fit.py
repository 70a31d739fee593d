"""The logistic map is the likeliest one, also where there is hardly one, and thresholds keep their risk."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from drivekd.errors import DataError
from drivekd.evaluate.confidence.fit import LogisticMap, fit_map, threshold_for


def answers(count: int, slope: float, intercept: float, seed: int = 0) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Drawn from a known map."""
    rng = np.random.default_rng(seed)
    logprobs = -rng.exponential(0.5, count)
    return logprobs, rng.random(count) < 1 / (1 + np.exp(-(slope * logprobs + intercept)))


def test_a_known_map_is_found() -> None:
    found = fit_map(*answers(50_000, 3.0, 1.5))
    assert found.slope == pytest.approx(3.0, abs=0.15)  # standard error of 50,000 draws: .04
    assert found.intercept == pytest.approx(1.5, abs=0.06)


def test_no_other_map_is_likelier() -> None:
    """By hand: the likelihood with Platt's targets, on a grid around what was found."""
    logprobs, right = answers(200, 2.0, 1.0)
    targets = np.where(right, (right.sum() + 1) / (right.sum() + 2), 1 / ((~right).sum() + 2))

    def loss(slope: float, intercept: float) -> float:
        share = 1 / (1 + np.exp(-(slope * logprobs + intercept)))
        return float(-(targets * np.log(share) + (1 - targets) * np.log(1 - share)).sum())

    found = fit_map(logprobs, right)
    least = loss(found.slope, found.intercept)
    for step in (1e-3, 1e-2, 0.1, 1.0):
        for slope in (-step, 0, step):
            for intercept in (-step, 0, step):
                assert loss(found.slope + slope, found.intercept + intercept) >= least - 1e-9


@pytest.mark.parametrize("right", [True, False])
def test_all_right_or_all_wrong_is_one_confidence_for_all(right: bool) -> None:
    found = fit_map(np.linspace(-3, 0, 20), np.full(20, right))
    assert found.slope == 0
    assert found.confidence(np.zeros(1))[0] == pytest.approx(21 / 22 if right else 1 / 22)


def test_equally_sure_answers_have_the_share_that_is_right() -> None:
    found = fit_map(np.full(100, -0.3), np.arange(100) < 80)
    assert found.slope == 0
    assert found.confidence(np.asarray([-0.3]))[0] == pytest.approx(0.8, abs=0.02)


def test_answers_that_one_threshold_tells_apart_have_a_finite_map() -> None:
    logprobs = np.linspace(-2, 0, 40)
    found = fit_map(logprobs, logprobs > -1)
    assert math.isfinite(found.slope) and 0 < found.slope < 100
    assert found.confidence(logprobs).min() > 0 and found.confidence(logprobs).max() < 1


def test_surer_answers_that_are_wrong_give_a_negative_slope() -> None:
    logprobs = np.linspace(-2, 0, 400)
    assert fit_map(logprobs, np.random.default_rng(0).random(400) < -logprobs / 2).slope < 0


@pytest.mark.parametrize("bad", [math.nan, -math.inf, math.inf])
def test_what_is_no_number_is_refused(bad: float) -> None:
    with pytest.raises(DataError, match="1 of 3 mean log-probabilities are not finite"):
        fit_map(np.asarray([-1, bad, -2.0]), np.asarray([True, False, True]))
    with pytest.raises(DataError, match="no answer"):
        fit_map(np.zeros(0), np.zeros(0, np.bool_))


@settings(max_examples=60)
@given(st.lists(st.tuples(st.floats(-1e4, 0), st.booleans()), min_size=1, max_size=40))
def test_whatever_the_answers_the_map_is_finite(drawn: list[tuple[float, bool]]) -> None:
    logprobs = np.asarray([one for one, _ in drawn])
    found = fit_map(logprobs, np.asarray([right for _, right in drawn]))
    assert math.isfinite(found.slope) and math.isfinite(found.intercept)
    assert np.isfinite(found.confidence(logprobs)).all()


@settings(max_examples=100)
@given(st.lists(st.tuples(st.integers(0, 8), st.booleans()), min_size=1, max_size=30), st.sampled_from([0.0, 0.1, 0.3, 0.5]))
def test_a_threshold_keeps_its_risk_and_as_many_answers_as_can_be(drawn: list[tuple[int, bool]], risk: float) -> None:
    confidence = np.asarray([one / 10 + 0.05 for one, _ in drawn])
    right = np.asarray([one for _, one in drawn])
    threshold = threshold_for(confidence, right, risk)

    def wrong(at: float) -> float:
        kept = ~right[confidence >= at]
        return float(kept.mean()) if len(kept) else 0.0

    assert wrong(threshold) <= risk
    assert all(wrong(other) > risk for other in confidence if (confidence >= other).sum() > (confidence >= threshold).sum())


def test_thresholds_by_hand() -> None:
    confidence, right = np.asarray([0.9, 0.8, 0.6, 0.4]), np.asarray([True, True, False, False])
    assert threshold_for(confidence, right, 0.0) == pytest.approx(0.7)
    assert threshold_for(confidence, right, 0.34) == pytest.approx(0.5)
    assert threshold_for(confidence, right, 0.5) == 0.0
    assert threshold_for(confidence, ~right, 0.1) == 1.0
    assert LogisticMap(1e6, 1e6).confidence(np.zeros(1))[0] <= 1
