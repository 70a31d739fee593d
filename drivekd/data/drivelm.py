"""DriveLM-nuScenes: scene -> key_frames -> frame -> {QA: {perception, prediction, planning, behavior}, image_paths}."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from drivekd.data.foreign import ForeignRecord, required_paths, required_text
from drivekd.data.json_file import json_type
from drivekd.errors import DataError

QUESTION_TYPES = ("perception", "prediction", "planning", "behavior")


def drivelm_records(document: object, path: Path) -> Iterator[ForeignRecord]:
    """Every question in the order of the file. Raises DataError naming scene, frame, question and field."""
    for scene, scene_value in _object(document, str(path)).items():
        source = f"{path}, scene {scene}"
        frames = _object(_object(scene_value, source).get("key_frames"), f"{source}: key_frames")
        for frame, frame_value in frames.items():
            yield from _frame_records(scene, frame, frame_value, f"{source}, frame {frame}")


def _frame_records(scene: str, frame: str, value: object, source: str) -> Iterator[ForeignRecord]:
    fields = _object(value, source)
    image_paths = required_paths(fields.get("image_paths"), source, "image_paths")
    for topic, questions in _object(fields.get("QA"), f"{source}: QA").items():
        if topic not in QUESTION_TYPES:
            raise DataError(f"{source}: QA.{topic}: expected one of {', '.join(QUESTION_TYPES)}")
        if not isinstance(questions, list):
            raise DataError(f"{source}: QA.{topic}: expected an array, found {json_type(questions)}")
        for number, pair in enumerate(questions, start=1):
            where = f"{source}, {topic} {number}"
            fields = _object(pair, where)
            yield ForeignRecord(
                source=where,
                scene=scene,
                frame=frame,
                topic=topic,
                question=required_text(fields.get("Q"), where, "Q"),
                answer=required_text(fields.get("A", ""), where, "A", empty=True),
                image_paths=image_paths,
            )


def _object(value: object, source: str) -> dict[str, object]:
    if not isinstance(value, dict):
        raise DataError(f"{source}: expected an object, found {json_type(value)}")
    return value
