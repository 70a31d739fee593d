"""Which of the known formats a file has, told by its first records.

messages             Drive-KD's own, LLaMA-Factory, ms-swift, ShareGPT: an array of {messages | conversations, images}
drivelm              DriveLM-nuScenes, train or evaluation: scene -> key_frames -> frame -> {QA, image_paths}
drivebench           DriveBench, clean or robust: an array of {scene_token, frame_token, question, answer, image_path}
nuscenes-qa          {"questions": [{sample_token, question, answer, template_type, num_hop}]}
predictions          DriveLM's output.json: an array of {id, question, answer}; answers of a model, no records
visual_description   DriveBench's descriptions of objects: scene -> key_frames -> frame -> {key_object_infos}; no records

What is an array here may be JSON Lines as well.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from drivekd.data.json_file import json_type
from drivekd.errors import DataError

from .json_stream import JsonCursor, elements, member_elements, members, open_text, shape

Format = Literal["messages", "drivelm", "drivebench", "nuscenes-qa", "predictions", "visual_description"]


def detect(path: Path, *, strict: bool = True) -> Format | None:
    """The format of a file. Raises DataError for an empty file; for one of no known format unless strict is False (None)."""
    kind = shape(path)
    found = _of_elements(path) if kind in ("array", "lines") else _of_members(path) if kind == "object" else None
    if found is None and strict:
        value = "an object" if kind == "object" else _scalar(path)
        raise DataError(
            f"{path}: expected records of Drive-KD, LLaMA-Factory, ms-swift, DriveLM, DriveBench or NuScenes-QA, found {value} "
            "of other shape" + (_one_record(path) if kind == "object" else "")
        )
    return found


def _of_elements(path: Path) -> Format:
    found: Format = "messages"
    number = 0
    for element in elements(path):
        number = element.number
        record = element.value
        if isinstance(record, dict):
            return _of_record(record)
        if number == 100:
            break
    if not number:
        raise DataError(f"{path}: the file holds no records")
    return found


def _of_record(record: dict[str, object]) -> Format:
    if "messages" in record or "conversations" in record:
        return "messages"
    if "image_path" in record or "scene_token" in record:
        return "drivebench"
    return "predictions" if {"id", "question", "answer"} <= record.keys() else "messages"


def _of_members(path: Path) -> Format | None:
    described = False
    empty = True
    for key, value in members(path, whole=False):
        empty = False
        if key == "questions":
            return "nuscenes-qa" if value == [] and _asks(path) else None
        frames = value.get("key_frames") if isinstance(value, dict) else None
        for frame in (frames if isinstance(frames, dict) else {}).values():
            if isinstance(frame, dict) and "QA" in frame:
                return "drivelm"
            described = True
    if empty:
        raise DataError(f"{path}: the file holds no records")
    return "visual_description" if described else None


def _asks(path: Path) -> bool:
    first = next(member_elements(path, "questions"), None)
    if first is None:
        raise DataError(f"{path}: the file holds no questions")
    return isinstance(first.value, dict) and "sample_token" in first.value


def _scalar(path: Path) -> str:
    with open_text(path) as text:
        return json_type(JsonCursor(text, path).value())


def _one_record(path: Path) -> str:
    keys = {key for key, _ in members(path, whole=False)}
    alone = keys & {"messages", "conversations", "scene_token"}
    return "; one record alone needs brackets: [{...}]" if alone else f" (keys {', '.join(sorted(keys)[:5])})" if keys else ""
