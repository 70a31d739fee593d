"""Which of the known formats a parsed JSON file has, and the records that foreign ones are read into.

DriveLM-nuScenes   scene -> key_frames -> frame -> {QA: {perception, prediction, planning, behavior}, image_paths}
DriveBench         a flat array of {scene_token, frame_token, question_type, question, answer, tag, image_path}
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
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
