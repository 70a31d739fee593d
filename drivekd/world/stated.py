"""What a structured answer states of the world's closed questions: the way back from objects to option letters.

signal, lead, road    the status of the traffic light, of the vehicle and of the curve that perception lists; none listed: none
notice                the first object of reasoning; an empty list: nothing critical
action                the first action of planning
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from drivekd.sample import Capability

from .questions import ACTIONS, CAUSES, LEADS, ROADS, SIGNALS, letter_of
from .structured import CAUSE_OBJECTS, CURVE_STATUS, SCHEMA_ACTIONS

STATED_TOPICS: Mapping[Capability, tuple[str, ...]] = {
    "perception": ("signal", "lead", "road"),
    "reasoning": ("notice",),
    "planning": ("action",),
}
_VEHICLES = ("car", "van", "truck", "bus", "trailer", "motorcycle")


def stated_options(capability: Capability, answer: Mapping[str, Any]) -> dict[str, str | None]:
    """The option letter of each of the capability's topics; None where the answer states none, or several.

    >>> stated_options("planning", {"actions": ["stop"], "reason": None, "probability": None, "complete": True})
    {'action': 'C'}
    """
    if capability == "planning":
        first = next(iter(answer["actions"] or []), None)
        return {"action": _letter(ACTIONS, {words: action for action, words in SCHEMA_ACTIONS.items()}.get(first or ""))}
    objects = answer["objects"]
    if objects is None:
        return dict.fromkeys(STATED_TOPICS[capability])
    if capability == "reasoning":
        causes = {words: cause for cause, words in CAUSE_OBJECTS.items()}
        return {"notice": _letter(CAUSES, causes.get(objects[0]["object"] or "") if objects else "nothing")}
    curves = {status: bend for bend, status in CURVE_STATUS.items()}
    bends = [curves.get(one["status"] or "") for one in objects if one["category"] == "other"]
    return {
        "signal": _letter(SIGNALS, _only([one["status"] for one in objects if one["category"] == "traffic_light"], "none")),
        "lead": _letter(LEADS, _only([one["status"] for one in objects if one["category"] in _VEHICLES], "none")),
        "road": _letter(ROADS, _only(bends, "straight")),
    }


def _only(found: Sequence[str | None], absent: str) -> str | None:
    """The one that all say; `absent` where there is nothing of the kind."""
    return next(iter(found)) if len(set(found)) == 1 else None if found else absent


def _letter(texts: Mapping[Any, str], key: str | None) -> str | None:
    return letter_of(texts, key) if key in texts else None
