"""Answers in the files that other people's tools read, when the records were theirs.

predictions.drivelm.json       DriveLM's output.json: [{id, question, answer}]
predictions.drivebench.json    DriveBench's records as they were, each with its `pred`

Their tags are in pixels of 1600x900, so a student's normalised ones are written in pixels. Answers under another picture setting
are files of their own, predictions.drivelm.Fog.json.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from drivekd.data.readers.formats import detect
from drivekd.data.readers.json_stream import elements
from drivekd.errors import DataError
from drivekd.files import write_whole
from drivekd.tags import coordinate_style, pixel_tags

from .line import Line

CLEAN = "clean"


def write_upstream(folder: Path, records: Path, lines: Sequence[Line]) -> list[Path]:
    """Write what belongs to the format of `records`, nothing for another one. lines: of one picture setting. Raises DataError."""
    form = detect(records, strict=False)
    if form not in ("drivelm", "drivebench") or not lines:
        return []
    texts = _in_pixels(lines)
    value = _drivelm(lines, texts) if form == "drivelm" else _drivebench(records, lines, texts)
    setting = lines[0].answered.setting
    path = folder / f"predictions.{form}{'' if setting == CLEAN else f'.{setting}'}.json"
    write_whole(path, json.dumps(value, indent=1) + "\n")
    return [path]


def _in_pixels(lines: Sequence[Line]) -> dict[int, str]:
    """The answers by index; the model is one writer, whose style is decided over all of them."""
    texts = {line.index: line.answered.given.text for line in lines}
    if coordinate_style(texts.values()) == "pixel":
        return texts
    return {index: pixel_tags(text) for index, text in texts.items()}


def _drivelm(lines: Sequence[Line], texts: Mapping[int, str]) -> list[dict[str, str]]:
    return [
        {"id": line.answered.sample.id, "question": pixel_tags(line.answered.sample.question), "answer": texts[line.index]}
        for line in lines
    ]


def _drivebench(records: Path, lines: Sequence[Line], texts: Mapping[int, str]) -> list[dict[str, Any]]:
    asked = {_number(line.answered.sample.source): texts[line.index] for line in lines}
    return [
        {**element.value, "pred": asked[element.number]}
        for element in elements(records)
        if element.number in asked and isinstance(element.value, dict)
    ]


def _number(source: str) -> int:
    match = re.search(r"record (\d+)", source)
    if match is None:
        raise DataError(f"{source}: expected the number of a record of DriveBench")
    return int(match[1])
