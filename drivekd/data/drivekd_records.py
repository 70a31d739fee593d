"""The Drive-KD format: one record to one Sample, with every fault of the record named.

    {"messages": [{"role": "user", "content": "<image>...question"}, {"role": "assistant", "content": "answer"}],
     "images": ["path of the first <image>", ...],
     "question_type": "perception" | "reasoning" | "planning",
     "meta": {"kind", "topic", "scene", "frame", "cameras", "ego_speed_mps",
              "id", "tag", "hop"}}      meta and each of its keys are optional; id, tag, hop: the data set's own, see Sample

The same shape is what LLaMA-Factory and ms-swift read. Other keys of a record are left alone; an unknown key of meta is
a fault, since a misspelt "scene" would silently mix training and test scenes.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from drivekd.data.answer_forms import infer_answer_form, options
from drivekd.data.json_file import json_type
from drivekd.sample import ANSWER_FORMS, CAMERAS, CAPABILITIES, AnswerForm, Capability, Sample

IMAGE_MARKER = "<image>"
_META_KEYS = ("kind", "topic", "scene", "frame", "cameras", "ego_speed_mps", "id", "tag", "hop")


@dataclass(frozen=True)
class ParsedRecord:
    """sample: None when there are problems. problems: each as "FILE, record N: field: what is wrong"."""

    sample: Sample | None
    problems: tuple[str, ...] = ()


def parse_record(record: object, *, source: str, image_root: Path, unlabelled: bool) -> ParsedRecord:
    """Read one record. source: "FILE, record N". unlabelled: allow a record without an answer."""
    if not isinstance(record, dict):
        return ParsedRecord(None, (f"{source}: expected an object, found {json_type(record)}",))
    problems: list[str] = []
    prompt, answer = _messages(record.get("messages"), unlabelled, problems)
    images = _images(record.get("images"), image_root, problems)
    question = _question(prompt, len(images), problems)
    capability = record.get("question_type")
    if capability not in CAPABILITIES:
        problems.append(f"question_type: expected one of {', '.join(CAPABILITIES)}, found {capability!r}")
    meta = _meta(record.get("meta"), len(images), problems)
    answer_form = _answer_form(meta.get("kind"), question, answer, problems)
    if problems:
        return ParsedRecord(None, tuple(f"{source}: {problem}" for problem in problems))
    sample = Sample(
        source=source,
        capability=cast(Capability, capability),
        question=question,
        answer=answer,
        images=images,
        answer_form=answer_form,
        topic=meta.get("topic", ""),
        scene=meta.get("scene", ""),
        frame=meta.get("frame", ""),
        cameras=tuple(meta.get("cameras", ())),
        id=meta.get("id", ""),
        tag=tuple(meta.get("tag", ())),
        hop=meta.get("hop"),
    )
    return ParsedRecord(sample)


def _messages(value: object, unlabelled: bool, problems: list[str]) -> tuple[str, str | None]:
    """(content of the user, content of the assistant or None)."""
    if not isinstance(value, list) or not value:
        problems.append(f"messages: expected a user and an assistant message, found {_found(value)}")
        return "", None
    contents = [_content(message, number, problems) for number, message in enumerate(value)]
    roles = [message.get("role") if isinstance(message, dict) else None for message in value]
    if roles not in (["user"], ["user", "assistant"]):
        problems.append(f"messages: expected the roles user, assistant; found {', '.join(map(str, roles))}")
        return contents[0], None
    answer = contents[1].strip() if len(contents) == 2 else ""
    if not answer and not unlabelled:
        where = "messages[1].content is empty" if len(contents) == 2 else "messages: no assistant message"
        problems.append(f"{where}; give an answer, or read the file as unlabelled")
    return contents[0], answer or None


def _content(message: object, number: int, problems: list[str]) -> str:
    content = message.get("content") if isinstance(message, dict) else None
    if isinstance(content, str):
        return content
    problems.append(f"messages[{number}].content: expected a string, found {_found(content)}")
    return ""


def _question(prompt: str, num_images: int, problems: list[str]) -> str:
    """The user's text without its image markers, which must stand in front: that is how every prompt is built."""
    question = prompt.lstrip()
    num_markers = 0
    while question.startswith(IMAGE_MARKER):
        question = question.removeprefix(IMAGE_MARKER).lstrip()
        num_markers += 1
    if IMAGE_MARKER in question:
        problems.append(f"messages[0].content: every {IMAGE_MARKER} must stand before the question")
    elif num_markers != num_images:
        problems.append(f"images: {num_images} given for {num_markers} {IMAGE_MARKER} in messages[0].content")
    if prompt and not question:
        problems.append("messages[0].content: the question is empty")
    return question.rstrip()


def _images(value: object, image_root: Path, problems: list[str]) -> tuple[Path, ...]:
    if not isinstance(value, list) or not value:
        problems.append(f"images: expected an array of paths, found {_found(value)}")
        return ()
    for number, path in enumerate(value):
        if not isinstance(path, str) or not path:
            problems.append(f"images[{number}]: expected a path, found {_found(path)}")
    return tuple(image_root / path if isinstance(path, str) else image_root for path in value)


def _meta(value: object, num_images: int, problems: list[str]) -> dict[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        problems.append(f"meta: expected an object, found {json_type(value)}")
        return {}
    for key in sorted(set(value) - set(_META_KEYS)):
        problems.append(f"meta.{key}: unknown key; known are {', '.join(_META_KEYS)}")
    for key in ("topic", "scene", "frame", "id"):
        if not isinstance(value.get(key, ""), str):
            problems.append(f"meta.{key}: expected a string, found {json_type(value[key])}")
    _check_cameras(value.get("cameras"), num_images, problems)
    _check_numbers(value, problems)
    speed = value.get("ego_speed_mps", 0.0)
    if isinstance(speed, bool) or not isinstance(speed, int | float):
        problems.append(f"meta.ego_speed_mps: expected metres per second, found {_found(speed)}")
    return value


def _check_numbers(value: dict[str, Any], problems: list[str]) -> None:
    tag = value.get("tag", [])
    if not isinstance(tag, list) or any(type(number) is not int for number in tag):
        problems.append(f"meta.tag: expected an array of whole numbers, found {_found(tag)}")
    hop = value.get("hop", 0)
    if type(hop) is not int:
        problems.append(f"meta.hop: expected a whole number, found {_found(hop)}")


def _check_cameras(value: object, num_images: int, problems: list[str]) -> None:
    if value is None:
        return
    if not isinstance(value, list) or any(camera not in CAMERAS for camera in value):
        problems.append(f"meta.cameras: expected names out of {', '.join(CAMERAS)}; found {_found(value)}")
    elif len(value) != num_images:
        problems.append(f"meta.cameras: {len(value)} named for {num_images} images")


def _answer_form(value: object, question: str, answer: str | None, problems: list[str]) -> AnswerForm:
    if value is None:
        return infer_answer_form(question, answer)
    if value not in ANSWER_FORMS:
        problems.append(f"meta.kind: expected one of {', '.join(ANSWER_FORMS)}, found {value!r}")
    elif value == "choice" and not options(question):
        problems.append('meta.kind: choice, but the question offers no options ("A. ... B. ...")')
    return cast(AnswerForm, value)


def _found(value: object) -> str:
    if value in ("", [], {}):
        return f"an empty {'string' if value == '' else 'array' if value == [] else 'object'}"
    return repr(value)[:80] if isinstance(value, str | list) else json_type(value)
