"""What a sheet says of a run: numbers of its report, what is weak, what is taken for what, which answers are shown."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fake_judge import fake_judge, says
from scored_evaluation import evaluation, right_in, samples, with_text, write_lines

from drivekd.answered import Answered, Given
from drivekd.errors import DataError, UsageError
from drivekd.evaluate.judge.judging import judge_folder
from drivekd.evaluate.predictions import answers_in
from drivekd.evaluate.sheet import document as d
from drivekd.evaluate.sheet.cases import in_turns, worst_and_best
from drivekd.evaluate.sheet.scored import ScoredAnswer, confusion_counts, scored_folder
from drivekd.evaluate.sheet.sheet import sheet_of, write_sheet
from drivekd.sample import CAMERAS, Sample


def blocks(document: d.Document, title: str) -> tuple[d.Block, ...]:
    """Of the section of this title."""
    return next(section.blocks for section in document.sections if section.title == title)


def titles(document: d.Document) -> list[str]:
    return [section.title for section in document.sections]


def test_the_sheets_numbers_are_the_reports(tmp_path: Path) -> None:
    folder = evaluation(tmp_path / "eval", samples(tmp_path), right_in(0.6))
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    chart, table, *_ = blocks(sheet_of(folder), "By capability")
    assert isinstance(chart, d.Whiskers) and isinstance(table, d.Table)
    assert [(row.value, list(row.interval), row.majority, row.random, row.n) for row in chart.rows] == [
        (row["accuracy"], row["interval"], row["majority"], row["random"], row["n"]) for row in report["scores"]
    ]
    assert [row[2] for row in table.rows] == [f"{row['accuracy']:.3f}" for row in report["scores"]]
    assert [row[7] for row in table.rows] == [str(row["unparsed"]) for row in report["scores"]]


def test_a_model_that_is_no_better_than_the_most_common_answer_is_called_so(tmp_path: Path) -> None:
    asked = samples(tmp_path)
    weak = blocks(sheet_of(evaluation(tmp_path / "weak", asked, right_in(0.5))), "By capability")[-1]
    strong = blocks(sheet_of(evaluation(tmp_path / "strong", asked, right_in(1.0))), "By capability")[-1]
    assert isinstance(weak, d.Note) and weak.warning
    assert weak.text.startswith("Not shown to be better than the most common answer: ")
    assert strong == d.Note("Every group's whole interval lies above its most common answer.")


def test_few_scenes_are_told(tmp_path: Path) -> None:
    note = blocks(sheet_of(evaluation(tmp_path / "eval", samples(tmp_path, 3), right_in(0.5))), "By capability")[-1]
    assert note == d.Note("Only 3 scenes: intervals that draw so few scenes are too narrow to be believed.", warning=True)


def test_six_cameras_stand_as_around_the_car(tmp_path: Path) -> None:
    (one,) = [one for one in samples(tmp_path, 1) if one.topic == "signal"]
    asked = [replace(one, images=one.images * 3, cameras=CAMERAS)]
    (case,) = blocks(sheet_of(evaluation(tmp_path / "eval", asked, right_in(0.0))), "Worst answers")[1:]
    assert isinstance(case, d.Case)
    assert [picture.camera.removeprefix("CAM_") for picture in case.pictures] == [
        *("FRONT_LEFT", "FRONT", "FRONT_RIGHT", "BACK_LEFT", "BACK", "BACK_RIGHT")
    ]


def test_settings_stand_in_drivebenchs_groups_and_the_pictures_worth_is_told(tmp_path: Path) -> None:
    def model(sample: Sample, rng: np.random.Generator) -> str:
        return sample.answer or ""

    folder = evaluation(tmp_path / "eval", samples(tmp_path), model, settings=["clean", "MotionBlur", "NoImage", "Rain", "Fog"])
    lines = [
        with_text(line, "Yes." if line.answered.setting == "NoImage" else line.answered.given.text) for line in answers_in(folder)
    ]
    write_lines(folder, lines)
    (folder / "report.NoImage.json").write_text(
        (folder / "report.NoImage.json").read_text(encoding="utf-8").replace('"accuracy": 1.0', '"accuracy": 0.25'),
        encoding="utf-8",
    )
    heat, lost, note = blocks(sheet_of(folder), "By picture setting")
    assert isinstance(heat, d.Heat) and isinstance(lost, d.Heat) and isinstance(note, d.Note)
    assert [label for label, _ in heat.rows] == ["clean", "NoImage", "weather: Fog", "weather: Rain", "motion: MotionBlur"]
    assert heat.columns == ("all", "perception", "reasoning", "planning")
    assert dict(lost.rows)["NoImage"] == (-0.75,) * 4
    assert note.text == (
        "Clean minus NoImage, what the model gains by looking: all +0.750, perception +0.750, reasoning +0.750, planning +0.750."
    )


def test_what_is_taken_for_what(tmp_path: Path) -> None:
    def model(sample: Sample, rng: np.random.Generator) -> str:
        return {"signal": "A", "near": "No.", "way": "I cannot say."}.get(sample.topic, "")

    document = sheet_of(evaluation(tmp_path / "eval", samples(tmp_path), model))
    yes_no, letters, signal, way = blocks(document, "What is taken for what")
    assert yes_no == d.Confusion("Yes/no questions", ("no", "yes"), ("no", "yes"), ((6, 0), (6, 0)))
    assert isinstance(letters, d.Confusion) and letters.predicted == ("A", "B", "C", "unparsed")
    assert letters.counts == ((4, 0, 0, 6), (4, 0, 0, 6), (4, 0, 0, 0))
    words = ("Green", "None", "Red")
    assert signal == d.Confusion("Choices: perception / signal", words, words, ((0, 0, 4),) * 3)
    assert isinstance(way, d.Confusion) and way.counts == ((0, 0, 6), (0, 0, 6))


def test_confusion_counts_each_pair() -> None:
    pairs = [("A", "A"), ("A", "B"), ("B", None), ("A", "B")]
    assert confusion_counts(pairs) == (("A", "B"), ("A", "B", "unparsed"), ((1, 2, 0), (0, 0, 1)))
    assert confusion_counts([]) == ((), (), ())


# --- which answers are shown ----------------------------------------------------------------------------------------


def rated(tmp_path: Path, model: object, scenes: int = 12) -> list[ScoredAnswer]:
    asked = samples(tmp_path, scenes)
    rng = np.random.default_rng(0)
    answered = [Answered(one, Given(model(one, rng), "stop", 1, -0.01 * index)) for index, one in enumerate(asked)]  # type: ignore[operator]
    return list(scored_folder(answered).answers)


def test_worst_are_wrong_best_are_right_and_none_is_both(tmp_path: Path) -> None:
    answers = rated(tmp_path, right_in(0.5))
    worst, best = worst_and_best(answers)
    assert {one.score for one in worst} == {0.0} and {one.score for one in best} == {1.0}
    assert len(worst) == len(best) == 12
    all_right = worst_and_best(rated(tmp_path, right_in(1.0)))
    assert (len(all_right[0]), len(all_right[1])) == (0, 12)
    none_right = worst_and_best(rated(tmp_path, right_in(0.0)))
    assert (len(none_right[0]), len(none_right[1])) == (12, 0)


def test_capabilities_and_topics_take_turns_and_the_surest_come_first(tmp_path: Path) -> None:
    answers = rated(tmp_path, right_in(0.0))
    worst, _ = worst_and_best(answers, most=8)
    assert [one.sample.topic for one in worst] == ["signal", "near", "way", "objects", "near", "way", "signal", "near"]
    assert worst[0].surety == max(one.surety for one in answers if one.sample.topic == "signal")
    assert len({one.sample.images for one in worst if one.sample.topic == "near"}) == 3


def test_turns_end_when_nothing_is_left(tmp_path: Path) -> None:
    answers = rated(tmp_path, right_in(0.0), scenes=1)
    assert len(in_turns(answers, 100)) == 4
    assert in_turns([], 5) == []


def test_a_verdict_says_why(tmp_path: Path) -> None:
    asked = {one.topic: one for one in samples(tmp_path, 1)}
    tag = "<c9,CAM_FRONT,0.1000,0.5000>"
    for topic, text, verdict, score in (
        ("signal", "A", "right", 1.0),
        ("signal", "B", "says B, right is A", 0.0),
        ("signal", "A or B", "states no answer; right is A", 0.0),
        ("near", "No.", "says no, right is yes", 0.0),
        ("objects", f"{tag} and <c1,CAM_BACK,0.2,0.2>", "1 of 1 objects found, 1 named that are not there", 2 / 3),
        ("objects", "<c1,CAM_FRONT,0.1", "0 of 1 objects found, 0 named that are not there, 1 malformed tags", 0.0),
    ):
        (one,) = scored_folder([Answered(asked[topic], Given(text))]).answers
        assert (one.verdict, one.score) == (verdict, pytest.approx(score))
    (cut,) = scored_folder([Answered(asked["signal"], Given("B", "length"))]).answers
    assert cut.verdict == "says B, right is A; cut by its token budget"


# --- confidence -----------------------------------------------------------------------------------------------------


def calibration_report(model: str = "sha256:0") -> dict[str, object]:
    bins = [{"n": 8, "confidence": 0.875, "accuracy": 0.625}, {"n": 8, "confidence": 0.5, "accuracy": 0.25}]
    quality = {"ece": 0.125, "by_chance": 0.0625, "aurc": 0.1, "bins": bins, "points": []}
    row = {"name": "planning", "fitted_on": 60, "reported_on": 70, "accuracy": 0.75, "before": quality, "after": quality}
    return {"model": model, "rows": [{**row, "threshold": 0.5, "coverage": 0.9, "risk": None}], "notes": ["a note"]}


def test_a_calibration_is_shown_with_its_diagrams(tmp_path: Path) -> None:
    folder = evaluation(tmp_path / "eval", samples(tmp_path, 2), right_in(0.6))
    assert "Confidence" not in titles(sheet_of(folder))
    (folder / "calibration_report.json").write_text(json.dumps(calibration_report()), encoding="utf-8")
    table, before, after, note = blocks(sheet_of(folder), "Confidence")
    assert isinstance(table, d.Table) and isinstance(before, d.Reliability) and isinstance(after, d.Reliability)
    assert table.rows == (("planning", "60", "70", "0.750", "0.125", "0.125", "0.062", "0.500", "0.900", "-"),)
    assert before.bins == (d.ReliabilityBin(0.875, 0.625, 8), d.ReliabilityBin(0.5, 0.25, 8))
    assert note == d.Note("a note")


def test_a_calibration_of_another_model_is_called_so(tmp_path: Path) -> None:
    folder = evaluation(tmp_path / "eval", samples(tmp_path, 2), right_in(0.6))
    (folder / "calibration_report.json").write_text(json.dumps(calibration_report("sha256:1")), encoding="utf-8")
    warning = blocks(sheet_of(folder), "Confidence")[0]
    assert isinstance(warning, d.Note) and warning.warning and "another model, sha256:1" in warning.text
    (folder / "calibration_report.json").write_text('{"rows": 3}', encoding="utf-8")
    with pytest.raises(DataError, match=r"calibration_report\.json: expected a report"):
        sheet_of(folder)


# --- a judge's scores -----------------------------------------------------------------------------------------------


def test_a_judges_scores_stand_apart_with_its_name(tmp_path: Path) -> None:
    folder = evaluation(tmp_path / "eval", samples(tmp_path, 4), right_in(0.6))
    before = sheet_of(folder)
    assert "Judge" not in titles(before)
    with fake_judge(lambda number, _: says("Total Score: 70" if number % 2 else "no idea")) as judge:
        judge_folder(folder, judge.settings("concurrency=1"))
    after = sheet_of(folder)
    table, *notes = blocks(after, "Judge")
    assert isinstance(table, d.Table) and table.separate == 3
    assert "judge-1 at 127.0.0.1" in table.caption and "no accuracy" in table.caption
    assert table.rows[0][3] == "70.0"
    assert any(isinstance(note, d.Note) and "no line Total Score: N" in note.text for note in notes)
    assert [section for section in after.sections if section.title != "Judge"] == list(before.sections)


def test_a_judge_of_other_answers_is_named_and_not_shown(tmp_path: Path) -> None:
    folder = evaluation(tmp_path / "eval", samples(tmp_path, 2), right_in(0.6))
    with fake_judge(lambda *_: says("Total Score: 70")) as judge:
        judge_folder(folder, judge.settings())
    write_lines(folder, [with_text(line, "changed") for line in answers_in(folder)])
    (note,) = blocks(sheet_of(folder), "Judge")
    assert isinstance(note, d.Note) and note.warning and "judges other answers" in note.text


# --- folders --------------------------------------------------------------------------------------------------------


def test_a_folder_without_a_finished_evaluation_is_told(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there is no report"):
        write_sheet(tmp_path)
    folder = evaluation(tmp_path / "eval", samples(tmp_path, 1), right_in(1.0))
    (folder / "predictions.jsonl").unlink()
    with pytest.raises(UsageError, match="holds no answers"):
        write_sheet(folder)
    (folder / "report.json").write_text("[]", encoding="utf-8")
    with pytest.raises(DataError, match=r"report\.json: expected a report"):
        write_sheet(folder)
