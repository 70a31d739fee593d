"""Where an answer says that something is: points and boxes in camera images, read from its object or from its text.

Objects of a structured answer state `position` [x, y], or `box` [left, top, right, bottom], in pixels of the camera's picture as
it was given. Free texts state tags as DriveLM writes them, <c1,CAM_FRONT,x,y>: 0..1, or pixels of a 1600 x 900 picture; whoever
draws says which one. A place outside the picture is no mark: nothing is moved to its edge.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from drivekd.runtime.answers.answer import Answer
from drivekd.tags import CoordinateStyle, find_tags

from .frames import UNNAMED


@dataclass(frozen=True)
class Mark:
    """x, y: 0..1 of the camera's picture, the middle of `box` (left, top, right, bottom) where there is one. name: short, also
    found in the answer's own lines."""

    camera: str
    x: float
    y: float
    name: str
    box: tuple[float, float, float, float] | None = None


def marks_of(answer: Answer, sizes_px: Mapping[str, tuple[int, int]], style: CoordinateStyle = "normalized") -> list[Mark]:
    """Places that an answer names in these pictures, in its order.

    sizes_px: width and height by camera. style: how the model writes the tags of a free text.
    """
    if answer.structured is None:
        return _tag_marks(answer.text, sizes_px, style)
    objects = answer.structured.get("objects")
    found = enumerate(objects if isinstance(objects, list) else (), start=1)
    marks = [_object_mark(value, str(number), sizes_px) for number, value in found]
    return [mark for mark in marks if mark is not None]


def _tag_marks(text: str, sizes_px: Mapping[str, tuple[int, int]], style: CoordinateStyle) -> list[Mark]:
    placed = [(_picture_of(tag.camera, sizes_px), tag) for tag in find_tags(text, style, cameras=None)]
    marks = [Mark(picture, tag.x, tag.y, tag.object_id) for picture, tag in placed if picture is not None]
    return list(dict.fromkeys(marks))  # DriveLM lists each tag twice


def _object_mark(value: Any, number: str, sizes_px: Mapping[str, tuple[int, int]]) -> Mark | None:
    """An object whose camera or place is null, or not in these pictures, has no mark."""
    camera = _picture_of(value.get("camera"), sizes_px) if isinstance(value, dict) else None
    if camera is None:
        return None
    width, height = sizes_px[camera]
    if (box := _numbers(value.get("box"), 4)) is not None:
        left, right = box[0] / width, box[2] / width
        top, bottom = box[1] / height, box[3] / height
        mark = Mark(camera, (left + right) / 2, (top + bottom) / 2, number, (left, top, right, bottom))
    elif (point := _numbers(value.get("position"), 2)) is not None:
        mark = Mark(camera, point[0] / width, point[1] / height, number)
    else:
        return None
    return mark if _inside(mark) else None


def _picture_of(camera: Any, sizes_px: Mapping[str, tuple[int, int]]) -> str | None:
    """The picture that a camera name means. Where there is one picture and its name was made up here, since the bundle knows no
    camera names, every name means it."""
    only = next(iter(sizes_px)) if len(sizes_px) == 1 else ""
    if only.startswith(UNNAMED):
        return only
    return camera if isinstance(camera, str) and camera in sizes_px else None


def _numbers(value: Any, count: int) -> Sequence[float] | None:
    """`count` numbers; a coordinate that was cut is null, and then there is no place."""
    whole = isinstance(value, list) and len(value) == count
    return value if whole and all(isinstance(n, int | float) and not isinstance(n, bool) for n in value) else None


def _inside(mark: Mark) -> bool:
    corners = mark.box is None or (mark.box[0] < mark.box[2] and mark.box[1] < mark.box[3])
    return 0 <= mark.x <= 1 and 0 <= mark.y <= 1 and corners
