"""Answers outlive whatever ends the process that gives them, and no two processes write one file."""

from __future__ import annotations

from pathlib import Path

import pytest
from recited import questions

from drivekd.answered import Answered, Given
from drivekd.errors import DataError, UsageError
from drivekd.evaluate.predictions import AnswerFile, Line, answers_in

SAMPLES = questions(6)


def line(index: int, text: str = "Yes.", setting: str = "clean") -> Line:
    return Line(index, Answered(SAMPLES[index], Given(text), setting))


def test_lines_are_there_as_soon_as_they_are_added(tmp_path: Path) -> None:
    path = tmp_path / "predictions.jsonl"
    with AnswerFile(path) as file:
        file.add(line(3))
        assert answers_in(tmp_path) == [line(3)]
        file.add(line(1))
    with AnswerFile(path) as file:
        assert file.lines == [line(3), line(1)]
    assert answers_in(tmp_path) == [line(1), line(3)], "by index"


@pytest.mark.parametrize("rest", [b"{", b'{"index": 5, "source": "f.j', '{"a": "\u00fc'.encode()[:-1]])
def test_a_line_that_was_cut_is_taken_off(rest: bytes, tmp_path: Path) -> None:
    path = tmp_path / "predictions.jsonl"
    path.write_bytes(line(0).to_text().encode() + rest)
    assert answers_in(tmp_path) == [line(0)]
    with AnswerFile(path) as file:
        file.add(line(1))
    assert answers_in(tmp_path) == [line(0), line(1)]


def test_a_broken_line_in_the_midst_is_named_and_nothing_is_lost(tmp_path: Path) -> None:
    path = tmp_path / "predictions.jsonl"
    data = b"{\n" + line(0).to_text().encode()
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"predictions\.jsonl, line 1: not a line of JSON"):
        AnswerFile(path)
    assert path.read_bytes() == data


def test_two_at_once_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "predictions.jsonl"
    with AnswerFile(path), pytest.raises(UsageError, match="another process is adding answers to it"):
        AnswerFile(path)
    AnswerFile(path).__exit__(None, None, None)


def test_shards_and_settings_are_read_together_each_question_once(tmp_path: Path) -> None:
    for name, lines in {
        "predictions.1-of-2.jsonl": [line(0), line(2), line(0, setting="Fog")],
        "predictions.2-of-2.jsonl": [line(3), line(1), line(2, "No.")],
        "predictions.drivelm.json": [line(5)],
    }.items():
        (tmp_path / name).write_text("".join(one.to_text() for one in lines), encoding="utf-8")
    assert [one.key for one in answers_in(tmp_path)] == [("clean", 0), ("clean", 1), ("clean", 2), ("clean", 3), ("Fog", 0)]
    assert answers_in(tmp_path)[2].answered.given.text == "Yes."
