"""How likely an answer is right: only by a calibration that the bundle carries; without one nothing is claimed.

calibration.json    {"planning": {"slope": 3.1, "intercept": 1.2, "threshold": 0.5}, ...}

confidence = 1 / (1 + exp(-(slope * mean_logprob + intercept)))    Platt scaling (Platt, 1999) of Answer.mean_logprob
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Any

from drivekd.errors import BundleError
from drivekd.typed_json import TypedJsonError, dataclass_from_json

CALIBRATION_FILE = "calibration.json"


@dataclass(frozen=True)
class Calibration:
    """Of one capability. threshold: an answer whose confidence is below it is abstained from."""

    slope: float
    intercept: float
    threshold: float

    def confidence(self, mean_logprob: float) -> float:
        """0 to 1."""
        score = self.slope * mean_logprob + self.intercept
        return 1 / (1 + math.exp(-score)) if score >= 0 else math.exp(score) / (1 + math.exp(score))  # neither overflows


def calibration_from_bytes(data: bytes, source: str) -> dict[str, Calibration]:
    """By capability. Raises BundleError: not JSON, a wrong entry, a number that cannot be."""
    try:
        entries: Any = json.loads(data)
        if not isinstance(entries, dict):
            raise TypedJsonError(f"{CALIBRATION_FILE}: expected an object, found {type(entries).__name__}")
        found = {name: dataclass_from_json(Calibration, value, f"{CALIBRATION_FILE}.{name}") for name, value in entries.items()}
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{source}: {CALIBRATION_FILE} cannot be used ({error})") from error
    for name, one in found.items():
        if not (math.isfinite(one.slope) and math.isfinite(one.intercept) and 0 <= one.threshold <= 1):
            raise BundleError(f"{source}: {CALIBRATION_FILE}: {name} has {one}; expected finite numbers, threshold 0 to 1")
    return found
