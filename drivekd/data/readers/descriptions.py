"""DriveBench's visual_description.json, and DriveLM's own key_object_infos: what each tagged object of a frame is.

scene -> key_frames -> frame -> {key_object_infos: {tag in pixels: {Category, Status, Visual_description, 2d_bbox}}}

A judge's prompt names them; they are joined to questions by frame.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from drivekd.errors import DataError
from drivekd.sample import Sample
from drivekd.tags import FRAME_HEIGHT_PX, FRAME_WIDTH_PX, find_tags

from .json_stream import members


@dataclass(frozen=True)
class ObjectDescription:
    """One object of a frame. tag: as in Samples, normalised. category, status, description: "" where the file has none.
    box: left, top, right, bottom, normalised; None where the file has none."""

    tag: str
    object_id: str
    camera: str
    category: str
    status: str
    description: str
    box: tuple[float, float, float, float] | None


Descriptions = dict[str, tuple[ObjectDescription, ...]]  # frame token -> its objects, in the order of the file


def object_descriptions(path: Path) -> Descriptions:
    """The described objects of every frame.

    Raises DataError naming scene, frame and tag of what is none, or when the file describes no objects.
    """
    found: Descriptions = {}
    for scene, value in members(path):
        frames = value.get("key_frames") if isinstance(value, dict) else None
        for frame, fields in (frames if isinstance(frames, dict) else {}).items():
            infos = fields.get("key_object_infos") if isinstance(fields, dict) else None
            source = f"{path}, scene {scene}, frame {frame}"
            if isinstance(infos, dict):
                found[frame] = tuple(_description(tag, info, source) for tag, info in infos.items())
    if not found:
        raise DataError(f"{path}: describes no objects; expected scene -> key_frames -> frame -> key_object_infos")
    return found


def described(sample: Sample, descriptions: Descriptions) -> tuple[ObjectDescription, ...]:
    """The objects that a sample's question names, else all of its frame."""
    objects = descriptions.get(sample.frame, ())
    named = {tag.object_id for tag in find_tags(sample.question)}
    return tuple(one for one in objects if one.object_id in named) or objects


def _description(tag: str, info: Any, source: str) -> ObjectDescription:
    tags = find_tags(tag, "pixel")
    if len(tags) != 1 or not isinstance(info, dict):
        raise DataError(f"{source}: key_object_infos: expected <cN,CAMERA,x,y> in pixels and an object, found {tag!r}")
    (one,) = tags
    box = info.get("2d_bbox")
    return ObjectDescription(
        tag=f"<{one.object_id},{one.camera},{one.x:.4f},{one.y:.4f}>",
        object_id=one.object_id,
        camera=one.camera,
        category=str(info.get("Category") or ""),
        status=str(info.get("Status") or ""),
        description=str(info.get("Visual_description") or ""),
        box=_box(box, f"{source}: {tag}") if box else None,
    )


def _box(box: Any, source: str) -> tuple[float, float, float, float]:
    if not isinstance(box, list) or len(box) != 4 or not all(type(edge) in (int, float) for edge in box):
        raise DataError(f"{source}: 2d_bbox: expected left, top, right, bottom in pixels, found {box!r}"[:300])
    left, top, right, bottom = box
    return left / FRAME_WIDTH_PX, top / FRAME_HEIGHT_PX, right / FRAME_WIDTH_PX, bottom / FRAME_HEIGHT_PX
