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
    assert calibration.confidence(-0.5) == pytest.approx(0.5)
    assert calibration.confidence(0.0) == pytest.approx(1 / (1 + math.exp(-1)))


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
