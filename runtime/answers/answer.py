"""What the runtime gives back: one `Answer` for each capability asked."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

FinishReason = Literal["stop", "length", "deadline", "cancelled"]


@dataclass(frozen=True)
class Answer:
    """One capability's answer about one frame.

    text: as generated; of a structured answer its compact JSON, which always fits its schema. fields: the named parts that a
    free text itself states ("final", "reason", "signal", ...); empty when it states none. structured: the object; None = free
    text.
    valid: the model ended the answer by itself (finish_reason "stop") and it is not empty. complete: nothing was cut, or filled
    in with null, when time, tokens or patience ended.
    tokens: number of generated tokens, the end-of-turn token not counted.
    mean_logprob: mean natural-log probability of the chosen tokens, those that a grammar forced not counted; no calibrated
    confidence. confidence: probability of being right, None without a stored calibration (calibrated False). abstained: it is
    below the bundle's stored threshold.
    backend: the engine that gave it, such as "ort-cpu".
    """

    capability: str
    text: str
    fields: dict[str, str] = field(default_factory=dict)
    structured: dict[str, Any] | None = None
    valid: bool = True
    complete: bool = True
    finish_reason: FinishReason = "stop"
    tokens: int = 0
    mean_logprob: float = 0.0
    confidence: float | None = None
    calibrated: bool = False
    abstained: bool = False
    backend: str = ""
    timings_ms: dict[str, float] = field(default_factory=dict)
