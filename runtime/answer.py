"""What the runtime gives back: one `Answer` for each capability asked."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

FinishReason = Literal["stop", "length", "deadline"]


@dataclass(frozen=True)
class Answer:
    """One capability's answer about one frame.

    fields: the named parts that the text itself states ("final", "reason", "signal", ...); empty when it states none.
    valid: the text ended by itself (finish_reason "stop") and is not empty.
    tokens: number of generated tokens, the end-of-turn token not counted.
    mean_logprob: mean natural-log probability of the generated tokens; no calibrated confidence.
    """

    capability: str
    text: str
    fields: dict[str, str] = field(default_factory=dict)
    valid: bool = True
    finish_reason: FinishReason = "stop"
    tokens: int = 0
    mean_logprob: float = 0.0
    timings_ms: dict[str, float] = field(default_factory=dict)
