"""DriveBench's visual_description.json: what a judge is told of the objects that a question is about."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from drivekd.data.json_file import json_type, read_json
from drivekd.errors import DataError
from drivekd.evaluate.judge.questions import Question
from drivekd.tags import FRAME_HEIGHT_PX, FRAME_WIDTH_PX, CoordinateStyle, Tag, find_tags

NEAR_PX = 16.0  # L1 at 1600x900, as for scored tags: the same object's point after rounding
_FIELDS = ("Category", "Status", "Visual_description")


@dataclass(frozen=True)
class ObjectDescriptions:
    """by_frame: (scene, frame) -> object -> sentence. Objects are where their tag's point is."""

    by_frame: Mapping[tuple[str, str], tuple[tuple[Tag, str], ...]]

    def of(self, question: Question, style: CoordinateStyle) -> str:
        """The objects that the question or its reference names, else all of its frame; "" where nothing is known.

        style: how the questions write their tags.
        """
        known = self.by_frame.get((question.scene, question.frame), ())
        named = find_tags(f"{question.question}\n{question.reference}", style)
        lines = [line for tag, line in known if not named or any(_near(tag, one) for one in named)]
        return "\n".join(lines)


def read_descriptions(path: Path) -> ObjectDescriptions:
    """Read the file. Raises DataError naming scene, frame and object."""
    found = {}
    for scene, value in _object(read_json(path), str(path)).items():
        where = f"{path}, scene {scene}"
        for frame, content in _object(_object(value, where).get("key_frames"), f"{where}: key_frames").items():
            place = f"{where}, frame {frame}"
            objects = _object(_object(content, place).get("key_object_infos"), f"{place}: key_object_infos")
            found[scene, frame] = tuple(_described(tag, fields, place) for tag, fields in objects.items())
    return ObjectDescriptions(found)


def _described(text: str, fields: object, place: str) -> tuple[Tag, str]:
    tags = find_tags(text, "pixel")
    if len(tags) != 1:
        raise DataError(
            f"{place}: {text!r}: expected one tag in pixels of {FRAME_WIDTH_PX}x{FRAME_HEIGHT_PX} as an object's name"
        )
    values = _object(fields, f"{place}, {text}")
    known = [f"{field.replace('_', ' ').lower()}: {values[field]}" for field in _FIELDS if values.get(field)]
    tag = tags[0]
    return tag, f"<{tag.object_id},{tag.camera},{tag.x:.4f},{tag.y:.4f}> {'; '.join(known)}"


def _near(one: Tag, other: Tag) -> bool:
    distance_px = abs(one.x - other.x) * FRAME_WIDTH_PX + abs(one.y - other.y) * FRAME_HEIGHT_PX
    return one.camera == other.camera and distance_px < NEAR_PX


def _object(value: Any, source: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise DataError(f"{source}: expected an object, found {json_type(value)}")
    return value
