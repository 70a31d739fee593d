"""Confidence by a bundle's own calibration."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drivekd.errors import BundleError
from drivekd.runtime.answers.confidence import Calibration, calibration_from_bytes

ENTRY = {"slope": 2.0, "intercept": 1.0, "threshold": 0.5}


def test_platt_scaling() -> None:
    calibration = calibration_from_bytes(json.dumps({"planning": ENTRY}).encode(), "bundle")["planning"]
    assert calibration == Calibration(2.0, 1.0, 0.5)
    half, three_quarters = math.log(0.5), math.log(0.75)
    assert calibration.confidence(half) == pytest.approx(1 / (1 + math.exp(-1))), "even odds leave the intercept"
    assert calibration.confidence(three_quarters) == pytest.approx(1 / (1 + math.exp(-1) / 9)), "odds of 3, squared"
    assert 0.999 < calibration.confidence(0.0) < 1
    assert calibration.confidence(1e-9) == calibration.confidence(0.0), "rounding above 1 is no NaN"


def test_no_slope_but_1_leaves_probabilities_as_they_are() -> None:
    for probability in (0.01, 0.3, 0.9, 0.999):
        assert Calibration(1.0, 0.0, 0.5).confidence(math.log(probability)) == pytest.approx(probability)


@given(slope=st.floats(-1e6, 1e6), intercept=st.floats(-1e6, 1e6), mean_logprob=st.floats(-1e3, 0))
def test_a_confidence_is_a_probability(slope: float, intercept: float, mean_logprob: float) -> None:
    assert 0 <= Calibration(slope, intercept, 0.5).confidence(mean_logprob) <= 1


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"{", "cannot be used"),
        (b"[]", "expected an object, found list"),
        (b'{"planning": {"slope": 1}}', r"calibration\.json\.planning: key 'intercept' is missing"),
        (json.dumps({"planning": ENTRY | {"threshold": 2}}).encode(), "threshold 0 to 1"),
        (json.dumps({"planning": ENTRY | {"slope": float("nan")}}).encode(), "finite numbers"),
    ],
)
def test_what_is_no_calibration(data: bytes, message: str) -> None:
    with pytest.raises(BundleError, match=message):
        calibration_from_bytes(data, "bundle")
