"""Which of the known formats a parsed JSON file has, and the record that the foreign ones are read into."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from drivekd.data.json_file import json_type
from drivekd.errors import DataError

Format = Literal["drivekd", "drivelm", "drivebench", "visual_description"]


@dataclass(frozen=True)
class ForeignRecord:
    """One question of DriveLM or DriveBench, as written there.

    source: names file and record in errors. topic: perception | prediction | planning | behavior.
    answer: "" when the file holds none. image_paths: camera -> path as written.
    """

    source: str
    scene: str
    frame: str
    topic: str
    question: str
    answer: str
    image_paths: Mapping[str, str]


def detect_format(document: object, path: Path) -> Format:
    """The format of a parsed file. Raises DataError for an empty or unknown one."""
    if document in ([], {}):
        raise DataError(f"{path}: the file holds no records")
    if isinstance(document, list) and isinstance(document[0], dict):
        if "scene_token" in document[0] and "image_path" in document[0]:
            return "drivebench"
        return "drivekd"
    if isinstance(document, dict):
        frames = [
            frame
            for scene in document.values()
            if isinstance(scene, dict) and isinstance(scene.get("key_frames"), dict)
            for frame in scene["key_frames"].values()
        ]
        if any(isinstance(frame, dict) and "QA" in frame for frame in frames):
            return "drivelm"
        if frames:
            return "visual_description"
    if isinstance(document, list):
        return "drivekd"
    raise DataError(f"{path}: expected Drive-KD, DriveLM or DriveBench records, found {json_type(document)} of other shape")


def required_text(value: object, source: str, field: str, *, empty: bool = False) -> str:
    """`value` when it is a string (non-empty unless `empty`), else DataError naming record and field."""
    if not isinstance(value, str) or not (value.strip() or empty):
        raise DataError(f"{source}: {field}: expected {'text' if empty else 'non-empty text'}, found {value!r}"[:300])
    return value.strip()


def required_paths(value: object, source: str, field: str) -> dict[str, str]:
    """`value` when it is an object camera -> path, else DataError naming record and field."""
    if not isinstance(value, dict) or not value or not all(isinstance(path, str) and path for path in value.values()):
        raise DataError(f"{source}: {field}: expected an object camera -> path, found {value!r}"[:300])
    return value
