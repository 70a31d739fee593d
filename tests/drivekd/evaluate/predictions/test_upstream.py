"""Answers to DriveLM's and DriveBench's records, as their own tools read them; and drivekd score reads them back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from drivekd.answered import Answered, Given
from drivekd.data.readers import read_samples
from drivekd.evaluate.foreign.given_texts import read_given
from drivekd.evaluate.foreign.matching import match
from drivekd.evaluate.predictions import Line
from drivekd.evaluate.predictions.upstream import write_upstream
from drivekd.sample import Sample
from drivekd.tags import pixel_tags

IMAGES = {"CAM_FRONT": "CAM_FRONT/1.jpg"}


def drivelm() -> dict[str, Any]:
    def pair(question: str, answer: str) -> dict[str, Any]:
        return {"Q": question, "A": answer, "C": None, "con_up": None, "con_down": None, "cluster": None, "layer": None}

    questions = {
        "perception": [pair("Where is <c1,CAM_FRONT,800.0,450.0>?", "Ahead.")],
        "prediction": [],
        "planning": [pair("What now?", "Brake.")],
        "behavior": [],
    }
    frame = {"key_object_infos": {}, "QA": questions, "image_paths": IMAGES}
    return {"scene": {"scene_description": "", "key_frames": {"frame": frame}}}


def drivebench() -> list[dict[str, Any]]:
    return [
        {
            "scene_token": "s",
            "frame_token": f"f{n}",
            "question_type": "planning",
            "question": f"What now {n} <c1,CAM_FRONT,800.0,450.0>?",
            "answer": "Brake.",
            "tag": [1],
            "image_path": IMAGES,
        }
        for n in range(3)
    ]


def lines_of(path: Path, text: str, setting: str = "clean") -> list[Line]:
    samples = read_samples(path, unlabelled=True)
    return [Line(n, Answered(sample, Given(f"{text} {n}"), setting)) for n, sample in enumerate(samples)]


@pytest.mark.parametrize("document", [drivelm(), drivebench()])
def test_they_are_found_again_by_their_own_keys(document: Any, tmp_path: Path) -> None:
    records = tmp_path / "records.json"
    records.write_text(json.dumps(document), encoding="utf-8")
    lines = lines_of(records, "See <c1,CAM_FRONT,0.5000,0.5000>, number")
    (path,) = write_upstream(tmp_path, records, lines)
    value = json.loads(path.read_text(encoding="utf-8"))
    text = value[0]["answer"] if "id" in value[0] else value[0]["pred"]
    assert text == "See <c1,CAM_FRONT,800.0,450.0>, number 0"
    assert "<c1,CAM_FRONT,800.0,450.0>" in value[0]["question"]
    found = match(read_given(path), read_samples(records, unlabelled=True))
    assert [one.given.text[-1] for _, one in found.answered] == [str(n) for n in range(len(lines))]


def test_the_shapes(tmp_path: Path) -> None:
    records = tmp_path / "records.json"
    records.write_text(json.dumps(drivelm()), encoding="utf-8")
    (path,) = write_upstream(tmp_path, records, lines_of(records, "Yes", "Fog"))
    assert path.name == "predictions.drivelm.Fog.json"
    assert [list(one) for one in json.loads(path.read_text(encoding="utf-8"))] == [["id", "question", "answer"]] * 2
    assert json.loads(path.read_text(encoding="utf-8"))[1]["id"] == "scene_frame_1"
    records.write_text(json.dumps(drivebench()), encoding="utf-8")
    (path,) = write_upstream(tmp_path, records, lines_of(records, "Yes")[1:])
    value = json.loads(path.read_text(encoding="utf-8"))
    assert value == [{**one, "pred": f"Yes {n}"} for n, one in enumerate(drivebench())][1:]


def test_a_model_that_writes_pixels_is_left_as_it_is(tmp_path: Path) -> None:
    records = tmp_path / "records.json"
    records.write_text(json.dumps(drivelm()), encoding="utf-8")
    (path,) = write_upstream(tmp_path, records, lines_of(records, "<c1,CAM_FRONT,1.5,700.0> <c2,CAM_FRONT,500.0,2.0>"))
    assert json.loads(path.read_text(encoding="utf-8"))[0]["answer"] == "<c1,CAM_FRONT,1.5,700.0> <c2,CAM_FRONT,500.0,2.0> 0"


def test_records_of_ours_have_no_upstream(tmp_path: Path) -> None:
    records = tmp_path / "records.json"
    record = {
        "messages": [{"role": "user", "content": "Q?"}, {"role": "assistant", "content": "A."}],
        "question_type": "planning",
    }
    records.write_text(json.dumps([record]), encoding="utf-8")
    line = Line(0, Answered(Sample("f, record 1", "planning", "Q?", "A.", ()), Given("A.")))
    assert write_upstream(tmp_path, records, [line]) == []


def test_tags_in_pixels() -> None:
    assert pixel_tags("a <c1,CAM_BACK,0.25,1.0> b <c2,CAM_X,0.5,0.5> <c3,CAM_BACK,4.32,0.5>") == (
        "a <c1,CAM_BACK,400.0,900.0> b <c2,CAM_X,0.5,0.5> <c3,CAM_BACK,4.32,0.5>"
    )
