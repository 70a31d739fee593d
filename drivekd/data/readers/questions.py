"""What DriveLM, DriveBench and NuScenes-QA have in common: a question of a frame whose cameras' pictures are named.

Choices made here: prediction and behavior are Drive-KD's reasoning, the original type stays in Sample.topic. A question that
names cameras in its tags is shown those alone, else every camera of the frame, in the order of CAMERAS.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from drivekd.data.answer_forms import infer_answer_form, several_letters
from drivekd.data.json_file import json_type
from drivekd.sample import CAMERAS, Capability, Sample
from drivekd.tags import cameras_named

from .messages import Reading
from .problem import Faults, ParsedRecord, check_surrogates

QUESTION_TYPES = ("perception", "prediction", "planning", "behavior")
CAPABILITY_OF_TOPIC: Mapping[str, Capability] = {
    "perception": "perception",
    "prediction": "reasoning",
    "planning": "planning",
    "behavior": "reasoning",
}


@dataclass(frozen=True)
class FrameQuestion:
    """One question as its data set knows it. question, answer: as written, whatever their type; the fields' names are for
    problems. pictures: camera -> path, as written."""

    question: object
    answer: object
    question_field: str
    answer_field: str
    pictures: Mapping[str, str]
    topic: str
    capability: Capability
    scene: str = ""
    frame: str = ""
    id: str = ""
    tag: object = None
    hop: int | None = None


def record_of(asked: FrameQuestion, faults: Faults, reading: Reading, raw: object = None) -> ParsedRecord:
    """The record with its one Sample, or with what is wrong. faults: may hold problems already."""
    question = _text(asked.question, asked.question_field, faults)
    answer = _text(asked.answer, asked.answer_field, faults, empty=True)
    if not answer and isinstance(asked.answer, str | None) and not reading.unlabelled:
        faults.add("answer missing", f"{asked.answer_field}: no answer; give one, or read the file as unlabelled")
    tag = checked_tag(asked.tag, faults)
    cameras = _cameras(question, asked.pictures, faults)
    check_surrogates(faults, **{asked.question_field: question, asked.answer_field: answer})
    if faults.problems:
        return faults.record((), raw)
    if several_letters(question, answer):
        faults.note("several letters in the answer: not scored as a choice")
    sample = Sample(
        source=faults.source,
        capability=asked.capability,
        question=question,
        answer=answer or None,
        images=tuple(reading.pictures.find(asked.pictures[camera]) for camera in cameras),
        answer_form=infer_answer_form(question, answer or None),
        topic=asked.topic,
        scene=asked.scene,
        frame=asked.frame,
        cameras=cameras,
        id=asked.id,
        tag=tag,
        hop=asked.hop,
    )
    return faults.record((sample,), raw)


def _text(value: object, field: str, faults: Faults, *, empty: bool = False) -> str:
    if value is None and empty:
        return ""
    if not isinstance(value, str) or not (value.strip() or empty):
        faults.add("question", f"{field}: expected {'text' if empty else 'non-empty text'}, found {value!r}"[:300])
        return ""
    return value.strip()


def checked_tag(value: object, faults: Faults) -> tuple[int, ...]:
    """DriveBench's and DriveLM's numbers of a question; () where the record has none."""
    if value is None:
        return ()
    if not isinstance(value, list) or any(type(number) is not int for number in value):
        faults.add("other field", f"tag: expected an array of whole numbers, found {value!r}"[:300])
        return ()
    return tuple(value)


def checked_paths(value: object, field: str, faults: Faults) -> dict[str, str]:
    """`value` when it is an object camera -> path, else empty with a problem."""
    if not isinstance(value, dict) or not value or not all(isinstance(path, str) and path for path in value.values()):
        faults.add("pictures", f"{field}: expected an object camera -> path, found {value!r}"[:300])
        return {}
    return value


def checked_name(value: object, field: str, faults: Faults) -> str:
    """`value` when it is a non-empty text, else empty with a problem."""
    if not isinstance(value, str) or not value:
        faults.add("other field", f"{field}: expected non-empty text, found {value!r}"[:300])
        return ""
    return value


def checked_object(value: object, field: str, faults: Faults) -> dict[str, object]:
    """`value` when it is an object, else empty with a problem."""
    if not isinstance(value, dict):
        faults.add("no record", f"{field}expected an object, found {json_type(value)}")
        return {}
    return value


def _cameras(question: str, pictures: Mapping[str, str], faults: Faults) -> tuple[str, ...]:
    if not pictures:
        return ()  # named already
    cameras = cameras_named(question) or tuple(camera for camera in CAMERAS if camera in pictures)
    missing = [camera for camera in cameras if camera not in pictures]
    if missing:
        faults.add("pictures", f"image_paths: the question needs {', '.join(missing)}, which is not there")
    elif not cameras:
        faults.add("pictures", f"image_paths: expected cameras out of {', '.join(CAMERAS)}; found {', '.join(pictures)}"[:400])
    return cameras
