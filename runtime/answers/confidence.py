"""How likely an answer is right: only by a calibration that the bundle carries; without one nothing is claimed.

calibration.json    {"planning": {"slope": 3.1, "intercept": 1.2, "threshold": 0.5, "measured": {...}},
                     "structured.planning": {...}, ...}

`drivekd calibrate` writes it (docs/calibration.md). Answers as JSON have entries of their own: a grammar leaves fewer choices,
and their probabilities mean something else.

p = exp(Answer.mean_logprob)
confidence = 1 / (1 + exp(-(slope * log(p / (1 - p)) + intercept)))    Platt scaling (Platt, 1999) of log-odds; 1 / slope is a
                                                                       temperature (Guo et al., arXiv 1706.04599, section 4.2)
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from drivekd.errors import BundleError
from drivekd.typed_json import TypedJsonError, dataclass_from_json, json_from_dataclass

CALIBRATION_FILE = "calibration.json"


@dataclass(frozen=True)
class Measured:
    """Where an entry comes from. data, model: digests of the records and of what answered. fitted_on, reported_on: answers, in
    scenes that the two do not share. bins: of the expected calibration error; ece_before, ece: of exp(mean_logprob) and of the
    confidence, on what was not fitted on. risk: the share of wrong answers that the threshold was chosen for."""

    data: str
    model: str
    fitted_on: int
    reported_on: int
    bins: int
    ece_before: float
    ece: float
    risk: float


@dataclass(frozen=True)
class Calibration:
    """Of one kind of answers. threshold: an answer whose confidence is below it is abstained from. measured: None = unsaid."""

    slope: float
    intercept: float
    threshold: float
    measured: Measured | None = None

    def confidence(self, mean_logprob: float) -> float:
        """0 to 1."""
        score = self.slope * float(log_odds(np.asarray(mean_logprob, np.float64))) + self.intercept
        return 1 / (1 + math.exp(-score)) if score >= 0 else math.exp(score) / (1 + math.exp(score))  # neither overflows


def log_odds(mean_logprobs: NDArray[np.float64]) -> NDArray[np.float64]:
    """log(p / (1 - p)) of p = exp(mean log-probability), elementwise. p above 1 - 1e-6 counts as that: more is rounding."""
    logprobs = np.minimum(mean_logprobs, -1e-6)
    return np.asarray(logprobs - np.log(-np.expm1(logprobs)))


def calibration_from_bytes(data: bytes, source: str) -> dict[str, Calibration]:
    """By capability. Raises BundleError: not JSON, a wrong entry, a number that cannot be."""
    try:
        entries: Any = json.loads(data)
        if not isinstance(entries, dict):
            raise TypedJsonError(f"{CALIBRATION_FILE}: expected an object, found {type(entries).__name__}")
        found = {
            name: dataclass_from_json(Calibration, _complete(value), f"{CALIBRATION_FILE}.{name}")
            for name, value in entries.items()
        }
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{source}: {CALIBRATION_FILE} cannot be used ({error})") from error
    for name, one in found.items():
        if not (math.isfinite(one.slope) and math.isfinite(one.intercept) and 0 <= one.threshold <= 1):
            raise BundleError(f"{source}: {CALIBRATION_FILE}: {name} has {one}; expected finite numbers, threshold 0 to 1")
    return found


def calibration_to_text(entries: Mapping[str, Calibration]) -> str:
    """The text of calibration.json."""
    value = {name: json_from_dataclass(one) for name, one in entries.items()}
    return json.dumps(value, indent=1, allow_nan=False) + "\n"


def entry_name(capability: str, *, structured: bool) -> str:
    """Under which name calibration.json has a capability's answers: "planning", "structured.planning"."""
    return f"structured.{capability}" if structured else capability


def _complete(value: object) -> object:
    return {"measured": None, **value} if isinstance(value, dict) else value
