"""Perception: the objects that an answer places by tags, or by DriveLM's boxes of traffic elements."""

from __future__ import annotations

import re
from typing import Any

from drivekd.tags import Tag, without_tags

from .asked import Asked
from .words import category_of, light_of

_STATUS_ASKED = re.compile(r"\bstatus of (?:the )?(?:object )?<", re.IGNORECASE)
_LOOK_ASKED = re.compile(r"\bvisual description of\b", re.IGNORECASE)
_OBJECTS_ASKED = re.compile(r"\bimportant objects? in the (?:current )?scene\b", re.IGNORECASE)
_RELATION_ASKED = re.compile(r"\brelative position|\bwhich lanes\b", re.IGNORECASE)
_ELEMENTS_ASKED = re.compile(r"\btraffic elements?\b.*\bbounding box", re.IGNORECASE | re.DOTALL)
_ELEMENT = re.compile(r"\(([a-z ]+),\s*([a-z ]+)((?:,\s*-?\d+(?:\.\d+)?){4})\)", re.IGNORECASE)
_LISTED = re.compile(r"^\W*(?=<)", re.MULTILINE)
_DESCRIBED = re.compile(r"\b(?:a|an|one|the)\s+(.+?)\s+(?:to|at|on|in)\s+the\s+(?:front|back|left|right)[^,.]*", re.IGNORECASE)
_IDS = re.compile(r"\bIDs?\b", re.IGNORECASE)
FRONT = "CAM_FRONT"  # "the front view"
UNKNOWN = "unknown"


def seen_facts(asked: Asked) -> dict[str, Any]:
    """{"objects": [...]}, or {}."""
    question = asked.question
    if _ELEMENTS_ASKED.search(question):
        objects = _elements(asked)
    elif _STATUS_ASKED.search(question):
        objects = _one_object(asked, description=asked.parts.get("object", ""), status=asked.stated)
    elif _LOOK_ASKED.search(question):
        description = asked.stated or ""
        objects = _one_object(asked, description=description, status=light_of(description))
    elif _OBJECTS_ASKED.search(question) and not _RELATION_ASKED.search(question):
        objects = _listed(asked) or _told(asked)
    else:
        return {}
    return {"objects": objects} if objects else {}


def _object(asked: Asked, tag: Tag, description: str, status: str | None) -> dict[str, Any]:
    return {
        "camera": tag.camera,
        "position": asked.position_px(tag.camera, tag.x, tag.y),
        "category": category_of(description),
        "status": status,
    }


def _one_object(asked: Asked, *, description: str, status: str | None) -> list[dict[str, Any]]:
    """The one that the question names."""
    tags = asked.tags(asked.sample.question)
    if len(tags) != 1 or not (description or status):
        return []
    return [_object(asked, tags[0], description, status)]


def _listed(asked: Asked) -> list[dict[str, Any]]:
    """A line for each: "- <c1,CAM_FRONT,0.1,0.5>, black SUV, relative to ego: front-left"."""
    objects = []
    for line in asked.answer.splitlines():
        tags = asked.tags(line)
        if len(tags) == 1 and _LISTED.match(line):
            description = line.rpartition(">")[2].lstrip(" ,:-")
            objects.append(_object(asked, tags[0], description, light_of(description)))
    return objects


def _told(asked: Asked) -> list[dict[str, Any]]:
    """A sentence of descriptions, then one of as many tags in the same order; of other numbers the tags alone."""
    head, *_ = _IDS.split(asked.answer, maxsplit=1)
    tags = asked.tags(asked.answer)
    described = _DESCRIBED.findall(without_tags(head))
    if len(described) != len(tags):
        described = [""] * len(tags)
    return [_object(asked, tag, text, light_of(text)) for tag, text in zip(tags, described, strict=True)]


def _elements(asked: Asked) -> list[dict[str, Any]]:
    """ "(traffic light, green, 674.86, 0.14, 723.33, 109.18)": category, status, and a box in px of 1600 x 900."""
    if asked.sample.cameras and FRONT not in asked.sample.cameras:
        return []
    objects = []
    for category, status, numbers in _ELEMENT.findall(asked.answer):
        left, top, right, bottom = (float(number) for number in numbers.lstrip(",").split(","))
        objects.append(
            {
                "camera": FRONT,
                "position": asked.position_of_frame_px(FRONT, (left + right) / 2, (top + bottom) / 2),
                "category": category_of(category),
                "status": None if status.strip().lower() == UNKNOWN else status,
            }
        )
    return objects
