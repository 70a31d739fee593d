"""Files of answers: our predictions.jsonl (or an evaluation's folder), DriveLM's output.json, DriveBench's records with `pred`.

predictions.jsonl   {"index", "question", "prediction", "setting", ...} a line, as drivekd eval writes them
DriveLM             [{"id": "SCENE_FRAME_INDEX", "question", "answer"}]
DriveBench          [{"scene_token", "frame_token", "question", "pred"}]
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from drivekd.answered import Given
from drivekd.data.json_file import json_type
from drivekd.data.readers.json_stream import elements, shape
from drivekd.data.traces import is_worldwide_name
from drivekd.errors import DataError
from drivekd.evaluate.predictions import Line, answers_in
from drivekd.evaluate.predictions.answer_file import read_lines
from drivekd.evaluate.predictions.line import line_from_text
from drivekd.tags import coordinate_style, normalize_tags

_EXPECTED = (
    "expected predictions.jsonl of drivekd eval, DriveLM's array of {id, question, answer}, "
    "or DriveBench's array of {scene_token, frame_token, question, pred}"
)
_MARKER = re.compile(r"<image>\s*")


@dataclass(frozen=True)
class GivenText:
    """One answer, and what its file says of its question: "" or () where it says nothing. question: as `question_key` makes it.

    index: of the record in its file, None = not told. severity: as in Answered.
    """

    source: str
    given: Given
    question: str = ""
    id: str = ""
    scene: str = ""
    frame: str = ""
    pictures: tuple[str, ...] = ()
    index: int | None = None
    setting: str = "clean"
    severity: int | None = None


def question_key(text: str) -> str:
    """A question without picture markers, its blanks made one: what two files of the same question have in common."""
    return " ".join(_MARKER.sub("", text).split())


def picture_key(picture: Path) -> str:
    """What two files of the same picture have in common: folder and name, or a name that is given once in the world."""
    return picture.name if is_worldwide_name(picture) else f"{picture.parent.name}/{picture.name}"


def read_given(path: Path) -> list[GivenText]:
    """Every answer of a file, or of an evaluation's folder. Raises DataError naming file, record and field."""
    if path.is_dir():
        return [_from_line(line, str(path)) for line in answers_in(path)]
    if not path.is_file():
        raise DataError(f"{path}: no such file; {_EXPECTED}")
    if shape(path) not in ("array", "lines"):
        raise DataError(f"{path}: {_EXPECTED}")
    first = next(iter(elements(path)), None)
    if first is None:
        raise DataError(f"{path}: the file holds no answers; {_EXPECTED}")
    if isinstance(first.value, dict) and "prediction" in first.value:
        if shape(path) == "array":
            raise DataError(f"{path}: an array of what predictions.jsonl has on lines; write each on a line of its own")
        return [_from_line(line, str(path)) for line in _lines(path)]
    found = [_from_record(element.value, f"{path}, record {element.number}", element.fault) for element in elements(path)]
    style = coordinate_style(one.question for one in found)
    return [replace(one, question=normalize_tags(one.question, style)) for one in found]


def _lines(path: Path) -> list[Line]:
    """With the last one, which an editor may have left without an end; a cut one is none."""
    lines = read_lines(path)
    tail = path.read_bytes().rpartition(b"\n")[2]
    try:
        json.loads(tail)
    except ValueError:
        return lines
    return [*lines, line_from_text(tail.decode("utf-8"), f"{path}, line {len(lines) + 1}")]


def _from_line(line: Line, path: str) -> GivenText:
    sample = line.answered.sample
    return GivenText(
        source=f"{path}, answer to {sample.source}",
        given=line.answered.given,
        question=question_key(sample.question),
        id=sample.id,
        scene=sample.scene,
        frame=sample.frame,
        pictures=tuple(map(picture_key, sample.images)),
        index=line.index,
        setting=line.answered.setting,
        severity=line.answered.severity,
    )


def _from_record(value: object, source: str, fault: str) -> GivenText:
    if fault or not isinstance(value, dict):
        raise DataError(f"{source}: {fault or f'expected an object, found {json_type(value)}'}")
    if "pred" in value:
        text = _text(value, "pred", source)
        question = question_key(_text(value, "question", source))
        scene, frame = (_text(value, name, source) for name in ("scene_token", "frame_token"))
        return GivenText(source, Given(text), question, scene=scene, frame=frame)
    if "id" in value and "answer" in value:
        text, name = _text(value, "answer", source), _text(value, "id", source)
        question = question_key(_text(value, "question", source)) if "question" in value else ""
        scene, frame = _scene_and_frame(name)
        return GivenText(source, Given(text), question, id=name, scene=scene, frame=frame)
    raise DataError(f"{source}: found the fields {', '.join(map(str, value)) or 'none'}; {_EXPECTED}")


def _text(record: dict[str, Any], field: str, source: str) -> str:
    found = record.get(field)
    if not isinstance(found, str):
        raise DataError(f"{source}: {field}: expected text, found {json_type(found) if field in record else 'nothing'}")
    return found


def _scene_and_frame(name: str) -> tuple[str, str]:
    """Of SCENE_FRAME_INDEX; ("", "") for another shape."""
    parts = name.split("_")
    return (parts[0], parts[1]) if len(parts) == 3 else ("", "")


def settings_of(given: Sequence[GivenText]) -> list[str]:
    """The picture settings, in the order in which they first come."""
    return list(dict.fromkeys(one.setting for one in given))
