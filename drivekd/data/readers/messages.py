"""Records of messages: Drive-KD's own format, and what LLaMA-Factory, ms-swift and ShareGPT files hold. One record to Samples.

    {"messages": [{"role": "user", "content": "<image>...question"}, {"role": "assistant", "content": "answer"}],
     "images": ["path of the first <image>", ...],
     "question_type": "perception" | "reasoning" | "planning",
     "structured": {"objects": [...]},                                  optional: the answer as an object, see structured.py
     "meta": {...}}                                                     optional; see meta.py

Other spellings: turns.py. Choices made here: a system turn is left out, since the checkpoint's own prompt holds in the car; each
answered turn is a Sample, and a later one's question begins with the turns before it as plain text, each on a line; other keys
of a record are left alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

from drivekd.camera_order import cameras_in_paths
from drivekd.data.answer_forms import infer_answer_form, options, several_letters
from drivekd.data.json_file import json_type
from drivekd.sample import ANSWER_FORMS, CAPABILITIES, AnswerForm, Capability, Sample

from .markers import IMAGE_MARKER, Unmarked, unmark
from .meta import checked_meta
from .pictures import PictureFinder
from .problem import Faults, ParsedRecord, check_surrogates
from .structured import checked_structured
from .turns import Exchange, exchanges, found


@dataclass(frozen=True)
class Reading:
    """How the records of one file are read. unlabelled: allow a record without an answer. capability: of records that name none;
    None: they are refused. pictures: where their paths lead."""

    pictures: PictureFinder
    unlabelled: bool = False
    capability: Capability | None = None


def parse_messages(record: object, source: str, reading: Reading) -> ParsedRecord:
    """Read one record. source: "FILE, record N"."""
    faults = Faults(source)
    if not isinstance(record, dict):
        faults.add("no record", f"expected an object, found {json_type(record)}")
        return faults.record((), record)
    asked = exchanges(record, faults)
    written = _pictures(record, asked, faults)
    images = tuple(map(reading.pictures.find, written))
    meta = checked_meta(record.get("meta"), len(images), faults)
    capability = _capability(record, reading, faults)
    if not asked:
        return faults.record((), record)
    cameras = tuple(meta.get("cameras", ()))
    if record.get("structured") is not None and len(asked) > 1:
        faults.add("structured", f"structured: one answer for a record of {len(asked)} turns; give each turn a record of its own")
    structured = checked_structured(record.get("structured"), capability, cameras, faults)
    shown = unmark(asked[0].user.text, len(images), asked[0].user.field, faults)
    samples = []
    for number, exchange in enumerate(asked, 1):
        place = Faults(f"{source}, turn {number}", faults.problems, faults.notes) if len(asked) > 1 else faults
        question, answer = _texts(exchange, shown, reading, place)
        form = _answer_form(meta.get("kind"), exchange, question, answer, place)
        if not place.problems:
            cameras = cameras or shown.cameras or cameras_in_paths(written)
            sample = Sample(
                source=place.source,
                capability=cast(Capability, capability),
                question=question,
                answer=answer,
                images=images,
                answer_form=form,
                topic=meta.get("topic", ""),
                scene=meta.get("scene", ""),
                frame=meta.get("frame", ""),
                cameras=cameras if len(set(cameras)) == len(images) else (),
                id=_id(record, meta, number if len(asked) > 1 else 0),
                tag=tuple(meta.get("tag", ())),
                hop=meta.get("hop"),
                structured=structured,
            )
            samples.append(sample)
    return faults.record(tuple(samples), record)


def _id(record: dict[str, Any], meta: dict[str, Any], turn: int) -> str:
    own = meta.get("id") or record.get("id", "")
    known = str(own) if isinstance(own, str | int) else ""
    return f"{known}-{turn}" if known and turn else known


def _capability(record: dict[str, Any], reading: Reading, faults: Faults) -> object:
    capability = record.get("question_type")
    if capability is None and reading.capability is not None:
        return reading.capability
    if capability not in CAPABILITIES:
        advice = (
            "; say what they are: --capability of drivekd data convert and validate, data.question_type of a run"
            if capability is None
            else ""
        )
        faults.add(
            "question_type", f"question_type: expected one of {', '.join(CAPABILITIES)}, found {capability!r}{advice}"[:400]
        )
    return capability


def _pictures(record: dict[str, Any], asked: Sequence[Exchange], faults: Faults) -> tuple[str, ...]:
    """The record's picture paths in order, from `images`, `image` or the content lists."""
    key = "image" if "image" in record and "images" not in record else "images"
    value = record.get(key)
    inline = tuple(path for exchange in asked for path in exchange.user.pictures)
    if inline and value:
        faults.add("pictures", f"{key}: the pictures stand in the messages as well; one place is enough")
    if value is None and inline:
        value = list(inline)
    values = [value] if isinstance(value, str | dict) and value else value
    if not isinstance(values, list) or not values:
        faults.add("pictures", f"{key}: expected an array of paths, found {found(value)}")
        return ()
    return tuple(_path(entry, f"{key}[{number}]", faults) for number, entry in enumerate(values))


def _path(entry: object, field: str, faults: Faults) -> str:
    path = entry.get("path") if isinstance(entry, dict) and not entry.get("bytes") else entry
    if not isinstance(path, str) or not path:
        faults.add("pictures", f"{field}: expected a path, found {found(path)}")
        return "?"
    if path.startswith(("http://", "https://", "data:")) or "\0" in path:
        faults.add("pictures", f"{field}: expected the path of a file, found {path[:40]!r}")
        return "?"
    check_surrogates(faults, **{field: path})
    return path.removeprefix("file://")


def _texts(exchange: Exchange, shown: Unmarked, reading: Reading, faults: Faults) -> tuple[str, str | None]:
    """Question and answer as the model will be asked, earlier turns in front of the question."""
    user, given = exchange.user, exchange.answer
    answer = given.text.strip() if given else ""
    if not answer and not reading.unlabelled:
        where = f"{given.field} is empty" if given else f"{user.field.partition('[')[0]}: no assistant message"
        faults.add("answer missing", f"{where}; give an answer, or read the file as unlabelled")
    if IMAGE_MARKER in answer:
        faults.add("picture marker", f"{given.field if given else ''}: an answer cannot show a picture")
    own = user.text.strip() if exchange.before else shown.question
    if exchange.before and IMAGE_MARKER in own:
        faults.add(
            "several turns", f"{user.field}: shows a picture of its own; pictures can only stand before the first question"
        )
    if user.text and not own:
        faults.add("question", f"{user.field}: the question is empty")
    question = own
    if exchange.before:
        faults.note("later turn read with the turns before it as text")
        question = "\n".join([shown.question, *(turn.text.strip() for turn in exchange.before[1:]), own])
        if options(question) != options(own):
            faults.add("several turns", f"{user.field}: options of an earlier turn would be taken for this question's")
    check_surrogates(faults, **{user.field: own, **({given.field: answer} if given else {})})
    return question, answer or None


def _answer_form(kind: object, exchange: Exchange, question: str, answer: str | None, faults: Faults) -> AnswerForm:
    if kind is None:
        own = exchange.user.text if exchange.before else question
        if several_letters(own, answer):
            faults.note("several letters in the answer: not scored as a choice")
        return infer_answer_form(own, answer)
    if kind not in ANSWER_FORMS:
        faults.add("meta", f"meta.kind: expected one of {', '.join(ANSWER_FORMS)}, found {kind!r}"[:300])
    elif kind == "choice" and not options(question):
        faults.add("options", 'meta.kind: choice, but the question offers no options ("A. ... B. ...")')
    elif kind == "choice" and (letters := several_letters(question, answer)):
        faults.add("options", f"meta.kind: choice, but the answer states several options ({', '.join(letters)})")
    return cast(AnswerForm, kind)
