"""DriveBench: a flat array of {scene_token, frame_token, question_type, question, answer, tag, image_path}."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from drivekd.data.drivelm import QUESTION_TYPES
from drivekd.data.foreign import ForeignRecord, required_paths, required_text
from drivekd.data.json_file import json_type
from drivekd.errors import DataError


def drivebench_records(document: object, path: Path) -> Iterator[ForeignRecord]:
    """Every question in the order of the file. Raises DataError naming record and field."""
    if not isinstance(document, list):
        raise DataError(f"{path}: expected an array of records, found {json_type(document)}")
    for number, record in enumerate(document, start=1):
        source = f"{path}, record {number}"
        if not isinstance(record, dict):
            raise DataError(f"{source}: expected an object, found {json_type(record)}")
        topic = record.get("question_type")
        if topic not in QUESTION_TYPES:
            raise DataError(f"{source}: question_type: expected one of {', '.join(QUESTION_TYPES)}, found {topic!r}")
        yield ForeignRecord(
            source=source,
            scene=required_text(record.get("scene_token"), source, "scene_token"),
            frame=required_text(record.get("frame_token"), source, "frame_token"),
            topic=topic,
            question=required_text(record.get("question"), source, "question"),
            answer=required_text(record.get("answer", ""), source, "answer", empty=True),
            image_paths=required_paths(record.get("image_path"), source, "image_path"),
        )
