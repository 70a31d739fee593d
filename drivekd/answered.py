"""What a model gave to a question, beside the question: all that scoring, judging and calibrating start from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from drivekd.sample import Sample


@dataclass(frozen=True)
class Given:
    """text: as generated. finish_reason: "length" where the budget cut it. tokens: generated, the end of turn left out.
    mean_logprob: of the tokens that the model chose, natural logarithm; None where nobody measured it, or it chose none."""

    text: str
    finish_reason: Literal["stop", "length"] = "stop"
    tokens: int = 0
    mean_logprob: float | None = None


@dataclass(frozen=True)
class Answered:
    """setting: what was done to the pictures, "clean" = nothing; severity: how strongly, None = the setting has none."""

    sample: Sample
    given: Given
    setting: str = "clean"
    severity: int | None = None
