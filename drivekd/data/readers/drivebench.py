"""DriveBench: {scene_token, frame_token, question_type, question, answer, tag, image_path: {camera: path}}, one after the other.

Its robust files call every question_type "robust_qas"; what is asked is then told by the tag, as DriveBench groups its scores (by
rubrics: perception choice and open, prediction yes/no and open, planning open, behavior choice):

    0  a question with options: perception, or behavior where the ego vehicle's is predicted; without options: a yes/no prediction
    1  planning        2  important objects: perception        3  what to notice first, second, third: prediction
    4  a description, 5  which corruption: perception
"""

from __future__ import annotations

import re

from drivekd.data.answer_forms import options
from drivekd.data.json_file import json_type

from .messages import Reading
from .problem import Faults, ParsedRecord
from .questions import CAPABILITY_OF_TOPIC, QUESTION_TYPES, FrameQuestion, checked_name, checked_paths, checked_tag, record_of

ROBUST = "robust_qas"
_TOPIC_OF_TAG = {1: "planning", 2: "perception", 3: "prediction", 4: "perception", 5: "perception"}
_EGO_BEHAVIOR = re.compile(r"\bbehaviou?r\b.*\bego\b|\bego\b.*\bbehaviou?r\b", re.IGNORECASE | re.DOTALL)


def parse_drivebench(record: object, source: str, reading: Reading) -> ParsedRecord:
    """Read one record. source: "FILE, record N"."""
    faults = Faults(source)
    if not isinstance(record, dict):
        faults.add("no record", f"expected an object, found {json_type(record)}")
        return faults.record((), record)
    topic = _topic(record, faults)
    asked = FrameQuestion(
        question=record.get("question"),
        answer=record.get("answer"),
        question_field="question",
        answer_field="answer",
        pictures=checked_paths(record.get("image_path"), "image_path", faults),
        topic=topic,
        capability=CAPABILITY_OF_TOPIC.get(topic, "perception"),
        scene=checked_name(record.get("scene_token"), "scene_token", faults),
        frame=checked_name(record.get("frame_token"), "frame_token", faults),
        tag=record.get("tag"),
    )
    return record_of(asked, faults, reading, record)


def _topic(record: dict[str, object], faults: Faults) -> str:
    topic = record.get("question_type")
    if topic == ROBUST:
        return _robust_topic(record, faults)
    if topic not in QUESTION_TYPES:
        expected = ", ".join((*QUESTION_TYPES, ROBUST))
        faults.add("question_type", f"question_type: expected one of {expected}, found {topic!r}"[:300])
        return ""
    return str(topic)


def _robust_topic(record: dict[str, object], faults: Faults) -> str:
    tag = checked_tag(record.get("tag"), Faults(""))
    question = str(record.get("question"))
    if tag[:1] == (0,):
        if not options(question):
            return "prediction"
        return "behavior" if _EGO_BEHAVIOR.search(question) else "perception"
    topic = _TOPIC_OF_TAG.get(tag[0]) if tag else None
    if topic is None:
        faults.add("question_type", f"tag: a question of {ROBUST} needs a tag of 0 to 5, found {record.get('tag')!r}"[:300])
    return topic or ""
