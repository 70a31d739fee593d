"""Planning: what the ego vehicle should do and why. What it must not do, or what would lead to a collision, is no plan."""

from __future__ import annotations

import re
from typing import Any

from .asked import Asked
from .words import actions_of

_NO_PLAN = re.compile(r"\b(?:collision|collid\w+|dangerous|unsafe|avoid|(?:should|must|can) ?n[o']t)\b", re.IGNORECASE)
_OF_ANOTHER = re.compile(r"\b(?:may|might|could|can|will|would|should|by)\s*<", re.IGNORECASE)  # "what actions may <c1,..> take?"
_PLAN_ASKED = re.compile(
    r"\b(?:actions?|what (?:should|could|will|would) (?:it|(?:the )?(?:ego )?(?:vehicle|car)) do|how should the ego)\b",
    re.IGNORECASE,
)
_ACTION_SENTENCE = re.compile(
    r"\baction\b[^.,;]*?\b(?:is|are)(?: to)? (.+?)(?=,? (?:the |and the )?reason\b|[.;]|$)", re.IGNORECASE
)
_REASON_SENTENCE = re.compile(
    r"\breason\b[^.,;]*?\b(?:is|being)(?: that| to be)? (.+?)(?=,? (?:which|with|and the probability|high|low|medium)\b|[.;]|$)",
    re.IGNORECASE,
)
_BECAUSE = re.compile(r"(?:\bbecause(?: of)?\b|\bsince\b|;)\s*(.+)", re.IGNORECASE | re.DOTALL)
_SHARE = re.compile(r"^\D{0,12}(\d{1,3}(?:\.\d+)?)\s*(%?)\W*$")


def planned_facts(asked: Asked) -> dict[str, Any]:
    """{"actions": [...], "reason", "probability"}, or {} when no action that the schemas know is said to be taken."""
    question = asked.question
    if _NO_PLAN.search(question) or _OF_ANOTHER.search(question):
        return {}
    if not (_PLAN_ASKED.search(question) or "action" in asked.parts):
        return {}
    text = asked.stated
    if text is None:
        return {}
    told = asked.parts.get("action") or _first(_ACTION_SENTENCE, asked.answer) or _before_the_reason(text)
    actions = actions_of(told)
    if not actions:
        return {}
    reason = asked.parts.get("reason") or _first(_REASON_SENTENCE, asked.answer) or _first(_BECAUSE, asked.answer)
    return {"actions": actions, "reason": reason, "probability": _share(asked.parts.get("probability", ""))}


def _before_the_reason(text: str) -> str:
    return _BECAUSE.split(text, maxsplit=1)[0]


def _first(pattern: re.Pattern[str], text: str) -> str | None:
    found = pattern.search(text)
    return found[1].strip() if found else None


def _share(text: str) -> float | None:
    """ "0.8" or "80 %" as .8; "High" is no number, so it is none."""
    found = _SHARE.match(text)
    if found is None:
        return None
    value = float(found[1]) / (100 if found[2] else 1)
    return round(value, 2) if 0 <= value <= 1 else None
