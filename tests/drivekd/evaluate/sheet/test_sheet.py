"""What a sheet says of a run: numbers of its report, what is weak, what is taken for what, which answers are shown."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from command_fixtures import Run
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
from drivekd.evaluate.structured_scores import structured_report
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


def test_a_majority_that_was_counted_in_the_scored_records_is_told(tmp_path: Path) -> None:
    """DriveLM's 26 choices: .923 by a majority that knew each rare answer, since no other question offers it."""
    folder = evaluation(tmp_path / "eval", samples(tmp_path, 3), right_in(0.5))
    told = [one.text for one in blocks(sheet_of(folder), "By capability") if isinstance(one, d.Note)]
    assert any(text.startswith("The majority of ") and "was counted in the scored records themselves" in text for text in told)
    scores = json.loads((folder / "report.json").read_text(encoding="utf-8"))["scores"]
    with_report(folder, scores=[{**row, "majority_from": "reference"} for row in scores])
    assert "The majority of " not in str(blocks(sheet_of(folder), "By capability"))


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


def test_other_open_answers_are_as_good_as_their_words(tmp_path: Path) -> None:
    asked = next(one for one in samples(tmp_path, 1) if one.topic == "objects")
    asked = replace(asked, topic="words", answer="It should slow down and then stop.")
    same, other = scored_folder(
        [Answered(asked, Given("it should slow down and then stop")), Answered(asked, Given("A van."))]
    ).answers
    assert (same.kind, same.score, same.verdict, same.is_good) == ("words", 1.0, "ROUGE_L 1.000", None)
    assert (other.kind, other.score) == ("words", 0.0)


def test_what_nothing_can_score_says_why(tmp_path: Path) -> None:
    signal, *_ = samples(tmp_path, 1)
    records = [replace(signal, answer=None), replace(signal, answer="A, C"), signal]
    unlabelled, several, right = scored_folder([Answered(one, Given("A")) for one in records]).answers
    assert (unlabelled.kind, unlabelled.score, unlabelled.verdict) == ("none", None, "without an answer to score against")
    assert several.score is None and "does not state one offered letter" in several.verdict
    assert right.score == 1.0


def test_answers_as_json_are_right_as_their_report_counts_them(tmp_path: Path) -> None:
    rest = {"reason": None, "probability": None, "complete": True}
    stop, go = (json.dumps({"actions": [action], **rest}) for action in ("stop", "accelerate"))
    way = next(one for one in samples(tmp_path, 1) if one.topic == "way")
    asked = [replace(way, structured=stop, scene=f"s{number}") for number in range(3)]
    texts = iter([stop, go, "{}"])
    folder = evaluation(tmp_path / "eval", asked, lambda *_: next(texts))
    identity = json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))
    identity["is"]["structured"] = True
    (folder / "evaluation.json").write_text(json.dumps(identity), encoding="utf-8")
    answered = [line.answered for line in answers_in(folder)]
    report = structured_report(answered, answerer="m", digest="sha256:0", not_asked={}, seed=0)
    (folder / "report.json").write_text(json.dumps(report.to_json()), encoding="utf-8")
    document = sheet_of(folder)
    assert document.summary.startswith("3 answers as JSON: accuracy 0.333")
    cases = [
        block for title in ("Worst answers", "Best answers") for block in blocks(document, title) if isinstance(block, d.Case)
    ]
    assert sorted(case.answers[0].verdict for case in cases) == [
        *("right", "states accelerate, right is stop", "states nothing; right is stop")
    ]
    assert "What is taken for what" not in titles(document)


# --- what a report may have besides ------------------------------------------------------------------------------------


def with_report(folder: Path, **fields: object) -> Path:
    """The same evaluation with other fields in its report."""
    path = folder / "report.json"
    path.write_text(json.dumps({**json.loads(path.read_text(encoding="utf-8")), **fields}), encoding="utf-8")
    return folder


def test_what_was_not_asked_cut_or_not_computed_is_told(tmp_path: Path) -> None:
    folder = evaluation(tmp_path / "eval", samples(tmp_path, 2), right_in(0.6))
    with_report(
        folder, not_asked={"without an answer": 7, "none of these": 0}, truncated={"planning": 3}, missing={"language": "needs x"}
    )
    _, *notes = blocks(sheet_of(folder), "What was evaluated")
    assert notes == [
        d.Note("7 records were not asked: without an answer."),
        d.Note("Answers that the token budget cut (clean): planning 3.", warning=True),
        d.Note("Not computed: language (needs x)."),
    ]


@pytest.mark.parametrize(
    ("budget", "told"),
    [({"planning": 96, "rest": 512}, "planning 96, others 512"), ({"rest": 512}, "512"), ("24", "24"), ({}, None)],
)
def test_a_token_budget_is_told_in_words(tmp_path: Path, budget: object, told: str | None) -> None:
    folder = evaluation(tmp_path / "eval", samples(tmp_path, 1), right_in(0.6))
    identity = json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))
    identity["is"]["max_new_tokens"] = budget
    (folder / "evaluation.json").write_text(json.dumps(identity), encoding="utf-8")
    facts = blocks(sheet_of(folder), "What was evaluated")[0]
    assert isinstance(facts, d.Facts) and dict(facts.rows).get("token budget") == told


def test_metrics_stand_by_family_and_capability(tmp_path: Path) -> None:
    folder = evaluation(tmp_path / "eval", samples(tmp_path, 2), right_in(0.6))
    metric = {"capability": "perception", "n": 4, "value": 0.5, "interval": [0.25, 0.75]}
    rows = [
        {**metric, "metric": "accuracy"},
        {**metric, "metric": "rouge_l"},
        {**metric, "metric": "tag_f1"},
        {**metric, "metric": "tag_f1", "capability": "planning", "value": 0.125},
        {**metric, "metric": "tag_precision", "capability": "planning", "value": 0.125, "n": 7},
        {**metric, "metric": "words", "capability": "", "value": 12.5, "interval": [3.0, None]},
    ]
    with_report(folder, metrics=rows, implementations={"language": "some package 1.2"})
    language, tags, form, note = blocks(sheet_of(folder), "Open answers")
    assert isinstance(language, d.Table) and isinstance(tags, d.Table) and isinstance(form, d.Table)
    assert language.rows == (("rouge_l", "0.500", "0.250-0.750"),)
    assert tags.header == ("metric", "perception, n 4", "95 % interval", "planning, n 4-7", "95 % interval")
    assert tags.rows == (
        ("tag_precision", "-", "-", "0.125", "0.250-0.750"),
        ("tag_f1", "0.500", "0.250-0.750", "0.125", "0.250-0.750"),
    )
    assert form.rows == (("words", "12.500", "-"),)
    assert note == d.Note("Language: some package 1.2.")
    assert "Object tags" not in titles(sheet_of(folder))


def test_scores_without_what_was_trained_on(tmp_path: Path) -> None:
    folder = evaluation(tmp_path / "eval", samples(tmp_path, 2), right_in(0.6))
    assert "Training data" not in titles(sheet_of(folder))
    scores = json.loads((folder / "report.json").read_text(encoding="utf-8"))["scores"]
    fewer = [{**row, "n": 1, "accuracy": 0.125} for row in scores[:2]]
    overlap = {"against": "data/train.json", "n": 6, "marked": 4, "scores": fewer, "metrics": []}
    note, table = blocks(sheet_of(with_report(folder, overlap=overlap)), "Training data")
    assert isinstance(note, d.Note) and note.warning and note.text.startswith("4 of 6 answers are about")
    assert isinstance(table, d.Table)
    assert [(row[0], row[1], row[2], row[4]) for row in table.rows] == [
        ("all", "1", "0.125", f"{scores[0]['accuracy']:.3f}"),
        ("perception", "1", "0.125", f"{scores[1]['accuracy']:.3f}"),
    ]
    (none,) = blocks(sheet_of(with_report(folder, overlap={**overlap, "marked": 0, "scores": []})), "Training data")
    assert isinstance(none, d.Note) and none.text.startswith("None of 6 answers")


def settings_file(grounding: object) -> dict[str, object]:
    rows = [{"pictures": "weather (1 of 5)", "group": "weather", "values": [0.5, None, 0.25, None]}]
    paper = {"what": "marks of a model, no accuracy", "rows": [["Some model", 45.56, 41.02, 51.94, 46.17]]}
    columns = ["perception", "reasoning", "planning", "avg"]
    return {"metric": "accuracy of some", "columns": columns, "rows": rows, "grounding": grounding, "paper": paper}


def test_what_the_pictures_are_worth_has_its_interval_and_the_paper_its_own_table(tmp_path: Path) -> None:
    folder = evaluation(tmp_path / "eval", samples(tmp_path, 2), right_in(0.6), settings=["clean", "NoImage"])
    row = {
        "metric": "accuracy",
        "capability": "",
        "n": 6,
        "first": 0.25,
        "second": 0.75,
        "difference": 0.5,
        "interval": [0.125, None],
    }
    rows = [{**row, "metric": "rouge_l", "capability": "planning"}, {**row, "metric": "tag_f1"}, row]
    (folder / "settings.json").write_text(json.dumps(settings_file({"rows": rows})), encoding="utf-8")
    grounding, groups, paper = blocks(sheet_of(folder), "By picture setting")[-3:]
    assert isinstance(grounding, d.Table) and isinstance(groups, d.Table) and isinstance(paper, d.Table)
    assert grounding.rows[0] == ("accuracy", "all", "6", "0.250", "0.750", "+0.500", "-")
    assert [row[:2] for row in grounding.rows[1:]] == [("tag_f1", "all"), ("rouge_l", "planning")]
    assert groups.rows == (("weather (1 of 5)", "0.500", "-", "0.250", "-"),)
    assert (paper.caption, paper.separate) == ("Marks of a model, no accuracy", 1)
    assert paper.rows == (("Some model", "45.56", "41.02", "51.94", "46.17"),)
    (folder / "settings.json").write_text(json.dumps(settings_file(None)), encoding="utf-8")
    assert len([block for block in blocks(sheet_of(folder), "By picture setting") if isinstance(block, d.Table)]) == 2


def test_upstreams_rules_and_nuscenes_qa_have_tables_of_their_own(tmp_path: Path) -> None:
    folder = evaluation(tmp_path / "eval", samples(tmp_path, 2), right_in(0.6))
    assert not {"Upstream's own rules", "NuScenes-QA"} & set(titles(sheet_of(folder)))
    exact = {"type": "exist", "hop": None, "n": 3, "accuracy": 0.5, "interval": [0.0, 1.0]}
    with_report(folder, nuscenes_qa=[exact])
    upstream = {"n": {"accuracy": 3, "language": 2, "match": 1}, "accuracy": 0.25, "language": None, "f1": 0.5, "gated": 4}
    ours = {"accuracy": 0.75, "tag_f1": None, "n": {"accuracy": 26, "tag_f1": 0}}
    drivelm = {"upstream": {**upstream, "why_null": "needs a judge"}, "ours": ours}
    rows = [{"capability": "", "n": 5, "upstream": 0.2, "ours": 0.8, "differ": 3}]
    metrics = {"compat": {"clean": {"drivelm": drivelm, "drivebench": rows}}}
    (folder / "metrics.json").write_text(json.dumps(metrics), encoding="utf-8")
    (qa,) = blocks(sheet_of(folder), "NuScenes-QA")
    assert isinstance(qa, d.Table) and qa.rows == (("exist", "all", "3", "0.500", "0.000-1.000"),)
    bench, lm, gated, missing = blocks(sheet_of(folder), "Upstream's own rules")
    assert isinstance(bench, d.Table) and bench.separate == 3 and bench.rows == (("all", "5", "0.800", "0.200", "3"),)
    assert isinstance(lm, d.Table) and lm.separate == 3
    assert lm.header == ("part", "n, all", "ours", "n, gated", "upstream's rule"), "two numbers of different questions: two n"
    assert lm.rows[0] == ("accuracy (tag 0)", "26", "0.750", "3", "0.250")
    assert lm.rows[2] == ("match, F1 half (tag 3)", "0", "-", "1", "0.500")
    assert isinstance(gated, d.Note) and gated.text.startswith("4 questions")
    assert missing == d.Note("Match and the final score: needs a judge.")


def test_judging_puts_the_judge_on_the_sheet_that_is_there(tmp_path: Path, run: Run) -> None:
    folder = evaluation(tmp_path / "eval", samples(tmp_path, 2), right_in(0.6))
    sheets = (folder / "sheet.md", folder / "sheet.html")
    for drawn in (False, True):
        if drawn:
            write_sheet(folder)
        with fake_judge(lambda number, prompt: says("Fine.\nTotal Score: 50")) as judge:
            code, _, err = run("judge", str(folder), f"--set=endpoint={judge.url}", "--set=model=judge-1")
        assert code == 0
        assert ("score sheet: " in err) is drawn
        assert [path.is_file() and "judge-1 at " in path.read_text(encoding="utf-8") for path in sheets] == [drawn] * 2


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
