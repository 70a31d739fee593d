"""`drivekd calibrate` on answers that are known: fitted on half of the scenes, reported on the others."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from drivekd.answered import Given
from drivekd.errors import DataError, UsageError
from drivekd.evaluate.answering import CLEAN, Budgets, OnAnswer, Pictures
from drivekd.evaluate.confidence.calibrate import CalibrationRequest, calibrate
from drivekd.evaluate.confidence.halves import halves
from drivekd.evaluate.confidence.judged import Judged
from drivekd.runtime.answers.confidence import calibration_from_bytes, calibration_to_text
from drivekd.sample import Sample


class Sure:
    """Right with probability exp(2 m - .2) when its mean log-probability is m: surer than it should be."""

    name, digest, budgets = "sure", "sha256:7", Budgets()

    def __init__(self, always: bool | None = None, logprob: float | None = None) -> None:
        self.always, self.logprob = always, logprob
        self.num_asked = 0

    def answers(self, samples: Sequence[Sample], *, pictures: Pictures = CLEAN, on_answer: OnAnswer | None = None) -> list[Given]:
        given = []
        for place, sample in enumerate(samples):
            draw = random.Random(sample.question)
            mean = -draw.expovariate(4)
            right = draw.random() < math.exp(2 * mean - 0.2) if self.always is None else self.always
            text = (sample.answer or "") if right else {"Yes.": "No.", "No.": "Yes."}[sample.answer or ""]
            given.append(Given(text, tokens=1, mean_logprob=mean if self.logprob is None else self.logprob))
            self.num_asked += 1
            if on_answer is not None:
                on_answer(place, given[-1])
        return given


def write_records(folder: Path, count: int, scenes: int = 40, capability: str = "planning") -> Path:
    records = [
        {
            "messages": [
                {"role": "user", "content": f"<image>Is it {n}?"},
                {"role": "assistant", "content": "Yes." if n % 2 else "No."},
            ],
            "images": ["x.png"],
            "question_type": capability,
            "meta": {"kind": "yesno", "scene": f"s{n % scenes}"},
        }
        for n in range(count)
    ]
    (folder / "x.png").write_bytes(b"x")
    path = folder / "test.json"
    path.write_text(json.dumps(records), encoding="utf-8")
    return path


@pytest.fixture
def asked(tmp_path: Path) -> CalibrationRequest:
    return CalibrationRequest(tmp_path / "model", write_records(tmp_path, 1200))


def run(request: CalibrationRequest, monkeypatch: pytest.MonkeyPatch, answerer: Any = None) -> Any:
    monkeypatch.setattr("drivekd.evaluate.evaluation.open_answerer", lambda *_: answerer or Sure())
    return calibrate(request)


def test_confidences_keep_what_they_promise(asked: CalibrationRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    report = run(asked, monkeypatch)
    (row,) = report.rows
    assert (row.fitted_on, row.reported_on) == (600, 600)
    assert row.before.ece > 0.2, "exp(m) promises .8 where .5 is right"
    assert row.after.ece < 2 * row.after.by_chance < 0.15, "no more than 600 answers in 15 bins show by chance"
    assert row.after.aurc == pytest.approx(row.before.aurc), "the order of answers is the same"
    assert 0 < row.coverage < 1 and row.risk is not None and row.risk < 1 - row.accuracy
    entry = report.entries["planning"]
    assert entry.measured is not None
    assert (entry.measured.model, entry.measured.fitted_on, entry.measured.reported_on) == ("sha256:7", 600, 600)
    assert entry.measured.data.startswith("sha256:") and entry.measured.ece == row.after.ece
    assert calibration_from_bytes(calibration_to_text(report.entries).encode(), "x") == report.entries
    assert len(report.table) == 1 and len(report.table[0]) == len(report.header)
    json.dumps(report.to_json(), allow_nan=False)


def test_the_threshold_is_for_the_wished_risk(asked: CalibrationRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [run(replace(asked, overrides=[f"risk={risk}"]), monkeypatch).rows[0] for risk in (0.05, 0.2, 0.35)]
    assert [row.threshold for row in rows] == sorted((row.threshold for row in rows), reverse=True)
    assert [row.coverage for row in rows] == sorted(row.coverage for row in rows)


def test_answers_of_an_evaluation_are_used_again(
    asked: CalibrationRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    kept = replace(asked, answers=tmp_path / "out")
    first, answerer = run(kept, monkeypatch), Sure()
    assert run(kept, monkeypatch, answerer) == first
    assert answerer.num_asked == 0
    assert run(asked, monkeypatch, answerer) == first
    assert answerer.num_asked == 1200


def test_too_few_answers_are_refused_with_their_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few = CalibrationRequest(tmp_path / "model", write_records(tmp_path, 90))
    with pytest.raises(
        DataError, match=r"planning: 45 answers to fit on and 45 in other scenes to report on; expected at least 50"
    ):
        run(few, monkeypatch)
    one_scene = CalibrationRequest(tmp_path / "model", write_records(tmp_path, 400, scenes=1))
    with pytest.raises(DataError, match="planning: 400 answers to fit on and 0 in other scenes to report on"):
        run(one_scene, monkeypatch)


@pytest.mark.parametrize("always", [True, False])
def test_all_right_and_all_wrong_are_said(always: bool, asked: CalibrationRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    report = run(asked, monkeypatch, Sure(always=always))
    (row,) = report.rows
    assert row.after.ece < 0.01 and row.map.slope == 0
    assert (row.threshold, row.risk) == ((0.0, 0.0) if always else (1.0, None))
    assert report.notes == [
        "planning: the answers to fit on are all right, all wrong or all equally sure: one confidence for all"
    ]
    assert "infinite" in report.table[0]


def test_answers_without_a_log_probability_are_counted(asked: CalibrationRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    class Silent(Sure):
        def answers(self, samples: Any, **options: Any) -> Any:
            keep = options.pop("on_answer")
            return super().answers(
                samples, on_answer=lambda i, given: keep(i, replace(given, mean_logprob=None) if i < 10 else given), **options
            )

    report = run(asked, monkeypatch, Silent())
    assert "planning: 10 answers left out: no token was chosen" in report.notes
    assert report.rows[0].fitted_on + report.rows[0].reported_on == 1190


def test_shards_are_for_eval(asked: CalibrationRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="calibrate asks in one process"):
        run(replace(asked, overrides=["shard=1/2"]), monkeypatch)


def test_halves_share_no_scene_and_do_not_depend_on_the_order() -> None:
    judged = [Judged(-0.1 * n, n % 3 == 0, f"s{n % 17}") for n in range(300)]
    first, second = halves(judged, 0)
    assert {one.scene for one in first}.isdisjoint(one.scene for one in second)
    assert len(first) + len(second) == 300 and abs(len(first) - len(second)) <= 18
    again = halves(judged[::-1], 0)
    assert {one.scene for one in again[0]} == {one.scene for one in first}
    assert {one.scene for one in halves(judged, 1)[0]} != {one.scene for one in first}
