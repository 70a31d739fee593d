"""NuScenes-QA: {"questions": [{sample_token, question, answer, template_type, num_hop}]}.

It names frames and no pictures: a file of frames does (frames.py). Answers are a word, a number, yes or no, and count when they
are equal; template_type becomes the topic, num_hop the hop, the question's number in the file its id.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from drivekd.data.json_file import json_type

from .json_stream import Element, member_elements
from .messages import Reading
from .problem import Faults, ParsedRecord
from .questions import FrameQuestion, checked_name, record_of


def nuscenes_qa_records(path: Path, reading: Reading, frames: Mapping[str, Mapping[str, str]]) -> Iterator[ParsedRecord]:
    """Every question in the order of the file. frames: frame token -> camera -> path."""
    for element in member_elements(path, "questions"):
        yield _parse(element, f"{path}, record {element.number}", reading, frames)


def _parse(element: Element, source: str, reading: Reading, frames: Mapping[str, Mapping[str, str]]) -> ParsedRecord:
    faults, record = Faults(source), element.value
    if element.fault:
        faults.add("no record", element.fault)
        return faults.record((), record)
    if not isinstance(record, dict):
        faults.add("no record", f"expected an object, found {json_type(record)}")
        return faults.record((), record)
    frame = checked_name(record.get("sample_token"), "sample_token", faults)
    if frame and frame not in frames:
        faults.add("pictures", f"sample_token: no frame {frame} in the file of frames ({len(frames):,} frames)")
    answer = record.get("answer")
    asked = FrameQuestion(
        question=record.get("question"),
        answer=str(answer) if type(answer) is int else answer,
        question_field="question",
        answer_field="answer",
        pictures=frames.get(frame, {}),
        topic=checked_name(record.get("template_type"), "template_type", faults),
        capability="perception",
        frame=frame,
        id=str(element.number),
        hop=_hop(record.get("num_hop"), faults),
    )
    return record_of(asked, faults, reading, record)


def _hop(value: object, faults: Faults) -> int | None:
    if type(value) is not int:
        faults.add("other field", f"num_hop: expected a whole number, found {value!r}"[:200])
        return None
    return value
