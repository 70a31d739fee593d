"""A line of predictions.jsonl says all that was known, and what is none is named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from drivekd.answered import Answered, Given
from drivekd.errors import DataError
from drivekd.evaluate.predictions import Line
from drivekd.evaluate.predictions.line import line_from_text
from drivekd.sample import Sample

SAMPLE = Sample(
    source="f.json, record 8",
    capability="reasoning",
    question="Wo? <c1,CAM_BACK,0.5,0.5> \ud83d",  # half an emoji: a reader may have let it through
    answer="Dort.\n",
    images=(Path("a/CAM_BACK/1.jpg"), Path("b ü.jpg")),
    answer_form="open",
    topic="where",
    scene="s",
    frame="f",
    cameras=("CAM_BACK", "CAM_FRONT"),
    id="s_f_3",
    tag=(2, 3),
    hop=1,
    structured='{"objects":[],"complete":true}',
)
LINE = Line(7, Answered(SAMPLE, Given("Da\u2028.", "length", 12, -0.25), "Fog", 5))


def test_a_line_reads_back() -> None:
    text = LINE.to_text()
    assert text.endswith("\n") and text.count("\n") == 1 and text.isascii()
    assert line_from_text(text, "x") == LINE
    assert LINE.key == ("Fog", 7)


def test_what_a_record_does_not_say_reads_back() -> None:
    bare = Line(0, Answered(Sample("f", "planning", "q", None, (), "open"), Given("")))
    assert line_from_text(bare.to_text(), "x") == bare


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("index", "7", "index: expected a whole number, found '7'"),
        ("index", True, "index: expected a whole number, found True"),
        ("form", "kind", "form: expected choice or yesno or open, found 'kind'"),
        ("images", [1], "images: expected an array of texts"),
        ("mean_logprob", "high", "mean_logprob: expected a finite logarithm of a probability, at most 0, or null"),
        ("mean_logprob", 3.0, "mean_logprob: expected a finite logarithm of a probability, at most 0, or null, found 3.0"),
        ("index", -1, "index: expected a number from 0 on, found -1"),
        ("tokens", -5, "tokens: expected a number from 0 on, found -5"),
        ("setting", "../../Fog", "setting: expected a word, found '../../Fog'"),
        ("finish_reason", "deadline", "finish_reason: expected stop or length"),
        ("hop", 1.5, "hop: expected int or null"),
    ],
)
def test_a_wrong_field_is_named(field: str, value: object, message: str) -> None:
    text = json.dumps(json.loads(LINE.to_text()) | {field: value})
    with pytest.raises(DataError, match=f"p.jsonl, line 3: ({message})"):
        line_from_text(text, "p.jsonl, line 3")


def test_a_missing_field_and_what_is_no_line_are_named() -> None:
    value = json.loads(LINE.to_text())
    del value["prediction"]
    with pytest.raises(DataError, match=r"prediction: expected text, found nothing; is this a predictions\.jsonl"):
        line_from_text(json.dumps(value), "x")
    with pytest.raises(DataError, match="x: not a line of JSON"):
        line_from_text("{", "x")
    with pytest.raises(DataError, match="x: expected an object"):
        line_from_text("[]", "x")
    with pytest.raises(DataError, match="mean_logprob: expected a finite logarithm"):
        line_from_text(LINE.to_text().replace("-0.25", "NaN"), "x")
