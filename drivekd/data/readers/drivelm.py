"""DriveLM-nuScenes: scene -> key_frames -> frame -> {QA: {perception, prediction, planning, behavior}, image_paths}.

Each of the four is a list of {Q, A, tag}. Train files, and evaluation files with or without answers. A question's id is
scene_frame_index, as predictions name it: the index counts over the four lists one behind the other, whatever the order in which
the file holds them.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

from drivekd.data.json_file import json_type

from .json_stream import members
from .messages import Reading
from .problem import Faults, ParsedRecord
from .questions import (
    CAPABILITY_OF_TOPIC,
    QUESTION_TYPES,
    FrameQuestion,
    checked_object,
    checked_paths,
    record_of,
)


def drivelm_records(path: Path, reading: Reading) -> Iterator[ParsedRecord]:
    """Every question in the order of the file, one scene in memory at a time. Raises DataError where the file breaks off."""
    for scene, value in members(path):
        faults = Faults(f"{path}, scene {scene}")
        frames = checked_object(checked_object(value, "", faults).get("key_frames"), "key_frames: ", faults)
        if faults.problems:
            yield faults.record((), value)
        for frame, fields in frames.items():
            yield from _frame_records(scene, frame, fields, f"{path}, scene {scene}, frame {frame}", reading)


def _frame_records(scene: str, frame: str, value: object, source: str, reading: Reading) -> Iterator[ParsedRecord]:
    faults = Faults(source)
    fields = checked_object(value, "", faults)
    pictures = checked_paths(fields.get("image_paths"), "image_paths", faults)
    topics = checked_object(fields.get("QA"), "QA: ", faults)
    for topic, pairs in topics.items():
        if topic not in QUESTION_TYPES:
            faults.add("question_type", f"QA.{topic}: expected one of {', '.join(QUESTION_TYPES)}")
        elif not isinstance(pairs, list):
            faults.add("no record", f"QA.{topic}: expected an array, found {json_type(pairs)}")
    if faults.problems:
        yield faults.record((), value)
    if not pictures:
        return
    lists = {topic: pairs for topic in QUESTION_TYPES if isinstance(pairs := topics.get(topic), list)}
    first = dict.fromkeys(QUESTION_TYPES, 0)
    for before, topic in pairwise(QUESTION_TYPES):
        first[topic] = first[before] + len(lists.get(before, ()))
    for topic in [topic for topic in topics if topic in lists]:
        for number, pair in enumerate(lists[topic]):
            faults = Faults(f"{source}, {topic} {number + 1}")
            asked = checked_object(pair, "", faults)
            question = FrameQuestion(
                question=asked.get("Q"),
                answer=asked.get("A"),
                question_field="Q",
                answer_field="A",
                pictures=pictures,
                topic=topic,
                capability=CAPABILITY_OF_TOPIC[topic],
                scene=scene,
                frame=frame,
                id=f"{scene}_{frame}_{first[topic] + number}",
                tag=asked.get("tag"),
            )
            yield faults.record((), pair) if faults.problems else record_of(question, faults, reading, pair)
