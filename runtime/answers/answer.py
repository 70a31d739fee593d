"""What the runtime gives back: one `Answer` for each capability asked, with the named parts that its own text states.

Nothing is guessed: see `answer_fields`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from .named_parts import named_parts
from .schemas import COMPLETE

FinishReason = Literal["stop", "length", "deadline", "cancelled"]


@dataclass(frozen=True)
class Answer:
    """One capability's answer about one frame.

    text: as generated; of a structured answer its compact JSON, which always fits its schema. fields: the named parts that a
    free text itself states ("final", "reason", "signal", ...); empty when it states none. structured: the object; None = free
    text.
    valid: the model ended the answer by itself (finish_reason "stop") and it is not empty; a structured one is empty when nothing
    but null stands in it (says_nothing). complete: nothing was cut, or filled in with null, when time, tokens or patience ended.
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


def says_nothing(structured: Any) -> bool:
    """Whether a structured answer, or a part of it, holds no word, number or name; `complete` is no part of what it says.

    An empty list says something: that there are none of its items. A list of items that say nothing does not.

        >>> says_nothing({"actions": None, "reason": " ", "probability": None, "complete": True})
        True
        >>> says_nothing({"objects": [], "complete": True}), says_nothing({"objects": [{"object": None}], "complete": True})
        (False, True)
    """
    if isinstance(structured, Mapping):
        return all(says_nothing(value) for name, value in structured.items() if name != COMPLETE)
    if isinstance(structured, list):
        return bool(structured) and all(map(says_nothing, structured))
    return structured is None or (isinstance(structured, str) and not structured.strip())


CHOICE = re.compile(r"\(?([A-H])(?:[.):]+(?:\s+|$)|$)")  # "C. ...", "(C) ...", "C"; not "A white van"
YES_NO = re.compile(r"(yes|no)\b", re.IGNORECASE)


def answer_fields(text: str) -> dict[str, str]:
    """Parts (see named_parts.py) by lower-case name, each without its final full stop; {} when the text names none.

    A part that was cut before its value states nothing, and is none here. A name stated twice keeps both values, joined by "; ".

        >>> answer_fields("Signal: red. Road: straight.")
        {'signal': 'red', 'road': 'straight'}
        >>> answer_fields("C. Brake to a stop. Reason: the signal is red.")
        {'choice': 'C', 'answer': 'Brake to a stop', 'reason': 'the signal is red'}
        >>> answer_fields("Yes. A van is near.")
        {'answer': 'yes'}
    """
    head, parts = named_parts(text.strip())
    fields = _head_fields(head)
    for name, value in ((name.lower(), _trimmed(value)) for name, value in parts):
        if value:
            fields[name] = f"{fields[name]}; {value}" if name in fields else value
    return fields


def _head_fields(head: str) -> dict[str, str]:
    """Of the text before the first name: an option letter with its words, or yes / no."""
    fields: dict[str, str] = {}
    if choice := CHOICE.match(head):
        fields["choice"] = choice[1]
        if words := _trimmed(head[choice.end() :]):
            fields["answer"] = words
    elif yes_no := YES_NO.match(head):
        fields["answer"] = yes_no[1].lower()
    return fields


def _trimmed(value: str) -> str:
    return value.strip().removesuffix(".").rstrip()
