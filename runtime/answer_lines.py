"""An answer as a few short lines that a person reads at a glance, beside its marks in the picture."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from .answers.answer import Answer
from .pictures.marks import without_tags

PLACES = ("camera", "position", "box")  # shown by the mark; the camera is said behind the words
UNKNOWN = "?"  # a null inside an object


@dataclass(frozen=True)
class Line:
    """bullet: a mark's name. strong: what decides, such as an action. aside: said more quietly behind the text."""

    text: str
    bullet: str = ""
    aside: str = ""
    strong: bool = False


def answer_lines(answer: Answer, *, say_cameras: bool = True) -> list[Line]:
    """A free text is one line, with tags as their names; an object is a line for each of its parts.

    say_cameras: behind an object's words; needless where there is one camera.
    """
    if answer.structured is None:
        text = " ".join(without_tags(answer.text).split())
        return [Line(text)] if text else []
    parts = [(name, value) for name, value in answer.structured.items() if name != "complete"]
    lines = [line for name, value in parts for line in _part_lines(name, value)]
    return lines if say_cameras else [replace(line, aside="") if line.bullet else line for line in lines]


def state_of(answer: Answer) -> str:
    """What must be known before the answer is believed: "" when it came to its own end and is not abstained from."""
    if answer.abstained:
        return "abstained"
    if answer.finish_reason != "stop":
        return {"length": "cut"}.get(answer.finish_reason, answer.finish_reason)
    return "" if answer.valid and answer.complete else "incomplete"


def _part_lines(name: str, value: Any) -> Iterator[Line]:
    words = name.replace("_", " ")
    if isinstance(value, list) and any(isinstance(item, dict) for item in value):
        yield from (_object_line(str(number), item) for number, item in enumerate(value, start=1))
    elif isinstance(value, list):
        yield Line(", ".join(map(_word, value)) or f"no {words}", strong=True)
    elif isinstance(value, str):
        yield Line(value)
    elif value is None:
        yield Line("", aside=f"{words}: not said")
    else:
        yield Line(f"{words} {_word(value)}")


def _object_line(number: str, item: Any) -> Line:
    """{"category": "car", "status": "braking", "camera": "CAM_FRONT", ...} -> "car: braking", aside CAM_FRONT."""
    if not isinstance(item, Mapping):
        return Line(_word(item), bullet=number)
    first, *others = [_word(value) for name, value in item.items() if name not in PLACES] or [UNKNOWN]
    return Line(first + (f": {', '.join(others)}" if others else ""), bullet=number, aside=_word(item.get("camera", "")))


def _word(value: Any) -> str:
    if value is None:
        return UNKNOWN
    if isinstance(value, float):
        return f"{value:.2f}"
    if isinstance(value, str) and value.islower():
        value = value.replace("_", " ")  # an enum's word; CAM_FRONT stays
    return " ".join(str(value).split())
