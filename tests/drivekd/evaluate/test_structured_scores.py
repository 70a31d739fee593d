"""Answers as JSON are scored by what they say first, and calibrated apart from free text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from recited import Recited

from drivekd.errors import DataError
from drivekd.evaluate.confidence.calibrate import CalibrationRequest, calibrate
from drivekd.evaluate.evaluation import EvalRequest, evaluate_file
from drivekd.evaluate.predictions import answers_in
from drivekd.evaluate.scoring import scorable
from drivekd.evaluate.structured_scores import stated_key, why_not_structured
from drivekd.sample import Sample

PLANS = (["stop"], ["keep_speed", "keep_lane"], ["slow_down"])


def plan(actions: list[str] | None) -> dict[str, Any]:
    return {"actions": actions, "reason": None, "probability": None, "complete": True}


def seen(objects: list[tuple[str, str | None]] | None) -> dict[str, Any]:
    listed = (
        None
        if objects is None
        else [{"camera": "CAM_FRONT", "position": None, "category": category, "status": status} for category, status in objects]
    )
    return {"objects": listed, "complete": True}


def thought(first: str | None) -> dict[str, Any]:
    return {"objects": [] if first is None else [{"object": first, "state": None, "effect": None}], "complete": True}


@pytest.mark.parametrize(
    ("capability", "answer", "key"),
    [
        ("planning", plan(["stop", "keep_lane"]), "keep_lane, stop"),
        ("planning", plan(None), None),
        ("planning", {"actions": {"stop": 1}}, None),
        ("planning", {"actions": "stop"}, None),
        ("reasoning", {"objects": [{"object": None, "state": None, "effect": None}]}, None),
        ("perception", {"objects": [{"category": None, "status": None}] * 2}, None),
        ("reasoning", thought("The  Traffic Light"), "the traffic light"),
        ("reasoning", thought(None), "nothing"),
        ("reasoning", seen(None), None),
        ("perception", seen([("traffic_light", "red"), ("car", None)]), "car null; traffic_light red"),
        ("perception", seen([]), "nothing"),
        ("perception", seen(None), None),
        ("perception", [], None),
        ("planning", {"objects": []}, None),
    ],
)
def test_what_an_answer_states(capability: str, answer: object, key: str | None) -> None:
    assert stated_key(capability, json.dumps(answer)) == key
    assert stated_key(capability, json.dumps(answer)[:-1]) is None, "what is no JSON states nothing"


@pytest.fixture
def records(tmp_path: Path) -> Path:
    """Three hundred planning questions with a structured answer of their own, over thirty scenes; one record has none."""
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "x.png")
    records = [
        {
            "messages": [{"role": "user", "content": f"<image>What now, {n}?"}, {"role": "assistant", "content": "Hm."}],
            "images": ["x.png"],
            "question_type": "planning",
            "meta": {"kind": "open", "scene": f"s{n // 10}"},
            **({"structured": plan(PLANS[n % 3])} if n else {}),
        }
        for n in range(301)
    ]
    path = tmp_path / "test.json"
    path.write_text(json.dumps(records), encoding="utf-8")
    return path


def mostly_right(sample: Sample) -> str:
    """Wrong every fifth time, null every tenth."""
    number = int(sample.question.rpartition(" ")[2].rstrip("?"))
    if number % 10 == 0:
        return json.dumps(plan(None))
    return json.dumps(plan(PLANS[number % 3] if number % 5 else ["yield"]))


def test_eval_scores_what_they_say(records: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("drivekd.evaluate.evaluation.open_answerer", lambda *_: Recited(mostly_right))
    found = evaluate_file(EvalRequest(tmp_path / "model", records, tmp_path / "out", structured=True))
    rows = {row[0]: row for row in found.rows}
    assert rows["planning"][1:3] == ["300", "0.800"]
    assert rows["planning"][4:7] == ["0.333", "0.333", "30"], "majority, random, unparsed"
    assert any("1 of 301 records were not asked" in note for note in found.notes)
    assert answers_in(tmp_path / "out")[0].answered.sample.structured is not None


def test_eval_compares_with_the_commonest_answer_of_the_reference(
    records: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("drivekd.evaluate.evaluation.open_answerer", lambda *_: Recited(mostly_right))
    reference = tmp_path / "train.json"
    slowing = [one | {"structured": plan(["slow_down"])} for one in json.loads(records.read_text())[:10]]
    others = [one | {"structured": plan(["yield"]), "meta": {"kind": "open", "scene": "s0"}} for one in slowing[:4]]
    reference.write_text(json.dumps([*slowing, *others, slowing[0] | {"structured": None}]), encoding="utf-8")
    request = EvalRequest(tmp_path / "model", records, tmp_path / "out", reference=reference, structured=True)
    found = evaluate_file(request)
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["scores"][0]["majority_from"] == "reference"
    assert report["scores"][0]["majority"] == pytest.approx(100 / 300), "slow_down, of three kinds in turn"
    assert {row[0]: row[5] for row in found.rows}["planning"] == "0.250", "four kinds: those of the reference can be guessed, too"
    assert report["overlap"]["marked"] == 9 and report["overlap"]["scores"][0]["n"] == 291, "scene s0"


def test_they_are_calibrated_apart(records: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("drivekd.evaluate.evaluation.open_answerer", lambda *_: Recited(mostly_right))
    report = calibrate(CalibrationRequest(tmp_path / "model", records, structured=True))
    assert list(report.entries) == ["structured.planning"]
    assert report.rows[0].accuracy == pytest.approx(0.8, abs=0.05)


def test_records_without_structured_answers_are_refused() -> None:
    with pytest.raises(DataError, match="none of 1 samples can be scored: 1 without actions or objects in their answer"):
        scorable([Sample("f", "planning", "What?", "Hm.", ())], why_not_structured)
