"""Reasoning: the objects that the ego vehicle should notice, first to third, each with its state and what follows from it."""

from __future__ import annotations

import re
from itertools import pairwise
from typing import Any

from drivekd.runtime.answers.named_parts import named_parts
from drivekd.tags import FRAME_HEIGHT_PX, FRAME_WIDTH_PX, Tag, normalize_tags

from .asked import Asked

_NOTICE_ASKED = re.compile(r"\bnotice (?:first|second|third)\b", re.IGNORECASE)
_FUTURE_ASKED = re.compile(r"\bfuture (?:state|status) of\b", re.IGNORECASE)
_ORDINALS = ("first", "second", "third")
_SENTENCE = re.compile(r"\b(?:first|second|third)(?:ly)?\b", re.IGNORECASE)
_IS = re.compile(r"\b(?:the object|it) is ((?:an? )?)(.+?)(?=,? so\b|[.;]|$)", re.IGNORECASE)
_SHOULD = re.compile(r"\bego (?:vehicle|car) should (.+?)(?=[.;]|$)", re.IGNORECASE)


def noticed_facts(asked: Asked) -> dict[str, Any]:
    """{"objects": [...]}, the most important first, or {}."""
    if _NOTICE_ASKED.search(asked.question):
        objects = _parts(asked) or _sentences(asked)
    elif _FUTURE_ASKED.search(asked.question):
        objects = _future(asked)
    else:
        return {}
    return {"objects": objects} if objects else {}


def _parts(asked: Asked) -> list[dict[str, Any]]:
    """ "First: <c1,..>, gray pickup truck; State: stationary; Ego: come to a stop" and so on, a line each."""
    objects: list[dict[str, Any]] = []
    for name, value in named_parts(asked.answer)[1]:
        value = value.strip().rstrip(";").strip()
        if name.lower() in _ORDINALS:
            tags = asked.tags(value)
            description = value.rpartition(">")[2].lstrip(" ,:-(").rstrip(")")
            objects.append({"object": description or _tag(tags)})
        elif objects and name.lower() in ("state", "status"):
            objects[-1].setdefault("state", value)
        elif objects and name.lower() in ("ego", "action", "effect"):
            objects[-1].setdefault("effect", value)
    return objects


def _sentences(asked: Asked) -> list[dict[str, Any]]:
    """ "Firstly notice that <c3,..>. The object is a traffic sign, so the ego vehicle should keep going ahead. Secondly ..." """
    objects = []
    starts = [match.start() for match in _SENTENCE.finditer(asked.answer)]
    for start, end in pairwise([*starts, len(asked.answer)]):
        piece = asked.answer[start:end]
        tags = asked.tags(piece)
        if tags:
            behind = piece.rpartition(">")[2]
            is_what, should = _IS.search(behind), _SHOULD.search(behind)
            is_a_thing = is_what is not None and bool(is_what[1])
            objects.append(
                {
                    "object": is_what[2] if is_what is not None and is_a_thing else _tag(tags),
                    "state": is_what[2] if is_what is not None and not is_a_thing else None,
                    "effect": should[1] if should else None,
                }
            )
    return objects


def _future(asked: Asked) -> list[dict[str, Any]]:
    """Of the one object that the question names."""
    tags = asked.tags(asked.sample.question)
    return [{"object": _tag(tags), "state": asked.stated}] if len(tags) == 1 and asked.stated else []


def _tag(tags: list[Tag]) -> str | None:
    """An object without a description is called by its tag, normalised."""
    if not tags:
        return None
    tag = tags[0]
    text = f"<{tag.object_id},{tag.camera},{tag.x * FRAME_WIDTH_PX},{tag.y * FRAME_HEIGHT_PX}>"
    return normalize_tags(text, "pixel")
