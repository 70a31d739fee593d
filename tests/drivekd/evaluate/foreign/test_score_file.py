"""Given answers of every format find their records, are scored, and nothing is lost on either side without a word."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from command_fixtures import Run

from drivekd.answered import Answered, Given
from drivekd.data.readers import read_samples
from drivekd.errors import DataError, UsageError
from drivekd.evaluate.foreign.command import ScoreRequest, score_file
from drivekd.evaluate.foreign.compat import drivelm_beside_ours
from drivekd.evaluate.foreign.given_texts import GivenText, question_key, read_given
from drivekd.evaluate.foreign.matching import match
from drivekd.evaluate.predictions import Line

CAMERAS = ("CAM_FRONT", "CAM_FRONT_LEFT", "CAM_FRONT_RIGHT", "CAM_BACK", "CAM_BACK_LEFT", "CAM_BACK_RIGHT")
CAR, VAN = "<c1,CAM_FRONT,400.0,300.0>", "<c2,CAM_BACK,800.0,450.0>"
MATTERS, MOVING, SAFE = "What matters?", f"What does {CAR} do? Options: A. It stops. B. It turns.", "What is safe?"


def drivelm(folder: Path) -> Path:
    """Two frames of one scene, three questions each."""
    frames = {
        f"f{number}": {
            "QA": {
                "perception": [{"Q": MATTERS, "A": f"There are {CAR} and {VAN}.", "tag": [2]}],
                "prediction": [],
                "planning": [{"Q": SAFE, "A": "Brake gently to a stop.", "tag": [1]}],
                "behavior": [{"Q": MOVING, "A": "A", "tag": [0]}],
            },
            "image_paths": {camera: f"{camera}/{number}.jpg" for camera in CAMERAS},
        }
        for number in range(2)
    }
    return write(folder / "test.json", {"s0": {"key_frames": frames}})


def write(path: Path, value: Any) -> Path:
    path.write_text(json.dumps(value), encoding="utf-8")
    return path


def output(folder: Path, *answers: tuple[str, str, str]) -> Path:
    """DriveLM's output.json: (id, question, answer)."""
    return write(
        folder / "output.json",
        [{"id": name, "question": f"<image>\n{question}", "answer": text} for name, question, text in answers],
    )


def perfect(folder: Path) -> Path:
    return output(
        folder,
        *(
            (f"s0_f{number}_{index}", question, answer)
            for number in range(2)
            for index, (question, answer) in enumerate(
                [(MATTERS, f"There are {CAR} and {VAN}."), (SAFE, "Brake gently to a stop."), (MOVING, "A")]
            )
        ),
    )


def metrics_of(out: Path) -> Any:
    return json.loads((out / "metrics.json").read_text(encoding="utf-8"))


def test_a_perfect_answerer_scores_one_on_every_metric(tmp_path: Path) -> None:
    scores = score_file(ScoreRequest(perfect(tmp_path), drivelm(tmp_path), tmp_path / "out", "drivelm"))
    value = metrics_of(tmp_path / "out")
    rows = {(row["metric"], row["capability"]): row["value"] for row in value["reports"]["clean"]["metrics"]}
    assert {name for name, _ in rows} >= {"accuracy", "tag_f1", "first_object", "action_f1", "action_exact", "bleu_4", "rouge_l"}
    ones = {key: found for key, found in rows.items() if key[0] != "words"}
    assert ones == pytest.approx(dict.fromkeys(ones, 1.0), abs=1e-6)
    upstream = value["compat"]["clean"]["drivelm"]["upstream"]
    assert (upstream["accuracy"], upstream["final"], upstream["why_null"]) == (1.0, None, "needs a judge")
    assert value["compat"]["clean"]["drivelm"]["ours"] == {"accuracy": 1.0, "tag_f1": None, "n": {"accuracy": 2, "tag_f1": 0}}
    assert value["matching"]["clean"]["matched"] == 6
    assert value["settings"] is None, "one setting has nothing beside it"
    assert ["final score", "", "needs a judge", "", ""] in scores.tables[-1][2]
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "evaluation.json",
        "metrics.json",
        "predictions.jsonl",
        "report.json",
    }


def test_answers_in_0_to_1_are_the_same_points_for_both_rules(tmp_path: Path) -> None:
    """Upstream's 16 px would match any two points in 0 to 1: the far one must stay unmatched, and gate its questions."""
    far = "<c1,CAM_FRONT,0.9000,0.9000>, <c2,CAM_BACK,0.5000,0.5000>"
    near = far.replace("0.9000,0.9000", "0.2500,0.3333")
    for text, gated, f1 in ((near, 0, 1.0), (far, 2, 0.5)):
        folder = tmp_path / str(gated)
        folder.mkdir()
        answers = [(f"s0_f{number}_0", MATTERS, text) for number in range(2)]
        answers += [(f"s0_f{number}_2", MOVING, "A") for number in range(2)]
        score_file(ScoreRequest(output(folder, *answers), drivelm(folder), folder / "out", "drivelm"))
        value = metrics_of(folder / "out")
        assert value["compat"]["clean"]["drivelm"]["upstream"]["gated"] == gated
        found = [row["value"] for row in value["reports"]["clean"]["metrics"] if row["metric"] == "tag_f1"]
        assert found == pytest.approx([f1, f1])


def test_what_does_not_match_is_counted_and_named_on_both_sides(tmp_path: Path) -> None:
    predictions = output(
        tmp_path,
        ("s0_f0_0", MATTERS, "x"),
        ("s0_f0_0", MATTERS, "again"),
        ("s0_f0_1", MOVING, "A"),  # the id of another selection; scene, frame and question tell
        ("s0_f1_1", "What else?", "y"),
        ("s9_f9_0", MATTERS, "z"),
    )
    scores = score_file(ScoreRequest(predictions, drivelm(tmp_path), tmp_path / "out"))
    matching = metrics_of(tmp_path / "out")["matching"]["clean"]
    assert matching["matched"] == 2
    assert matching["records_without_answer"]["count"] == 4
    told = "\n".join(matching["answers_without_record"]["first"])
    assert matching["answers_without_record"]["count"] == 3
    assert "record 2: its question has an answer already; the first one counts" in told
    assert "record 4: the records have id s0_f1_1 with another question" in told
    assert "record 5: no record has this question (s9_f9_0)" in told
    assert any("4 records have no answer, no score counts them" in note for note in scores.notes)
    lines = [json.loads(line) for line in (tmp_path / "out/predictions.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [line["prediction"] for line in lines] == ["x", "A"]


def test_the_first_question_of_a_frame_is_the_first_by_its_id(tmp_path: Path) -> None:
    """Records in another order, as after a split: the gate is still opened by question 0."""
    samples = read_samples(drivelm(tmp_path))[::-1]
    texts = {MATTERS: "nothing"}
    answered = {place: Answered(one, Given(texts.get(one.question, one.answer or ""))) for place, one in enumerate(samples)}
    found = drivelm_beside_ours(samples, samples, answered).score
    assert (found.gated, found.n["accuracy"]) == (2, 0)


def of_scenes(folder: Path, *scenes: str, told: bool) -> Path:
    """Records of our own format, one a scene: the same question, pictures of the same name. told: their scene, too."""
    records = [
        {
            "messages": [
                {"role": "user", "content": "<image>Is the light red?"},
                {"role": "assistant", "content": "Yes." if scene < "s2" else "No."},
            ],
            "images": [f"{scene}/CAM_FRONT.jpg"],
            "question_type": "perception",
            "meta": {"scene": scene, "frame": f"{scene}-0"} if told else {},
        }
        for scene in scenes
    ]
    return write(folder / f"{'-'.join(scenes)}.json", records)


@pytest.mark.parametrize("told", [True, False])
def test_an_answer_about_one_scene_is_none_about_another_with_pictures_of_the_same_name(tmp_path: Path, told: bool) -> None:
    samples = read_samples(of_scenes(tmp_path, "s1", "s2", "s3", told=told))
    predictions = tmp_path / "predictions.jsonl"
    lines = [Line(place, Answered(sample, Given(sample.answer or ""))).to_text() for place, sample in enumerate(samples)]
    predictions.write_text("".join(reversed(lines)), encoding="utf-8")
    score_file(ScoreRequest(predictions, of_scenes(tmp_path, "s1", told=told), tmp_path / "out"))
    value = metrics_of(tmp_path / "out")
    assert [row["accuracy"] for row in value["reports"]["clean"]["scores"]] == [1.0, 1.0, 1.0], "the answer of s1, not of s3"
    assert value["matching"]["clean"]["answers_without_record"]["count"] == 2
    with pytest.raises(DataError, match="no answer is for a record"):
        score_file(ScoreRequest(predictions, of_scenes(tmp_path, "s4", told=told), tmp_path / "none"))


def test_a_last_line_without_an_end_is_an_answer_and_a_cut_one_is_none(tmp_path: Path) -> None:
    data, predictions = of_scenes(tmp_path, "s1", "s3", told=True), tmp_path / "predictions.jsonl"
    lines = [Line(place, Answered(sample, Given("Yes."))).to_text() for place, sample in enumerate(read_samples(data))]
    text = "".join(lines)
    for number, (kept, matched) in enumerate([(text[:-1], 2), (text[:-20], 1)]):
        predictions.write_text(kept, encoding="utf-8")
        score_file(ScoreRequest(predictions, data, tmp_path / str(number)))
        assert metrics_of(tmp_path / str(number))["matching"]["clean"]["matched"] == matched
    write(predictions, [json.loads(line) for line in lines])
    with pytest.raises(DataError, match="write each on a line of its own"):
        score_file(ScoreRequest(predictions, data, tmp_path / "array"))


def test_an_id_that_counts_does_not_bring_two_scenes_together(tmp_path: Path) -> None:
    sample = replace(read_samples(of_scenes(tmp_path, "s1", told=True))[0], id="0")
    given = GivenText("here", Given("No."), question_key(sample.question), id="0", scene="s2", index=0)
    found = match([given], [sample])
    assert not found.answered
    assert "of another scene or frame (scene s2, frame not told)" in found.unknown[0]


def test_drivebench_records_with_pred_and_its_rule_beside_ours(tmp_path: Path) -> None:
    records = [
        {
            "scene_token": "s",
            "frame_token": f"f{number}",
            "question_type": "behavior",
            "question": "Where? Options: A. Left. B. Right. C. Within a lane.",
            "answer": "C",
            "tag": [0],
            "image_path": {camera: f"{camera}/{number}.jpg" for camera in CAMERAS},
            "pred": text,
        }
        for number, text in enumerate(["Final: C. It stays within a lane", "C", "Option A is wrong", "hm"])
    ]
    path = write(tmp_path / "drivebench.json", records)
    score_file(ScoreRequest(path, path, tmp_path / "out", "drivebench"))
    value = metrics_of(tmp_path / "out")["compat"]["clean"]["drivebench"]
    # Upstream reads A (the article), C, A, nothing; ours C, C, nothing, nothing.
    assert [(row["capability"], row["n"], row["upstream"], row["ours"], row["differ"]) for row in value] == [
        ("", 4, 0.25, 0.5, 2),
        ("reasoning", 4, 0.25, 0.5, 2),
    ]


def test_our_own_answers_score_again_to_the_same_numbers(tmp_path: Path) -> None:
    data = drivelm(tmp_path)
    score_file(ScoreRequest(perfect(tmp_path), data, tmp_path / "first"))
    first = metrics_of(tmp_path / "first")["reports"]["clean"]
    for predictions in (tmp_path / "first", tmp_path / "first/predictions.jsonl"):
        out = tmp_path / f"again-{predictions.name}"
        score_file(ScoreRequest(predictions, data, out))
        again = metrics_of(out)["reports"]["clean"]
        assert {**again, "answerer": "", "digest": ""} == {**first, "answerer": "", "digest": ""}


def test_settings_stand_apart_and_grounding_is_clean_minus_black(tmp_path: Path) -> None:
    data = drivelm(tmp_path)
    score_file(ScoreRequest(perfect(tmp_path), data, tmp_path / "first"))
    lines = [json.loads(line) for line in (tmp_path / "first/predictions.jsonl").read_text(encoding="utf-8").splitlines()]
    lines += [{**line, "setting": "NoImage", "prediction": "B"} for line in lines]
    both = tmp_path / "predictions.jsonl"
    both.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    score_file(ScoreRequest(both, data, tmp_path / "out"))
    value = metrics_of(tmp_path / "out")
    assert set(value["reports"]) == {"clean", "NoImage"}
    assert [row["pictures"] for row in value["settings"]["rows"]] == ["clean", "NoImage"]
    grounding = {(row["metric"], row["capability"]): row for row in value["settings"]["grounding"]["rows"]}
    accuracy = grounding["accuracy", "reasoning"]
    assert (accuracy["first"], accuracy["second"], accuracy["difference"]) == (0.0, 1.0, 1.0)
    assert accuracy["interval"] == [-1.0, 1.0], "one scene says nothing"
    assert value["settings"]["paper"]["what"].startswith("the paper's table: marks of DeepSeek-V3.2")


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ([{"id": "a_b_0", "question": "Q", "answer": ["A"]}], "record 1: answer: expected text, found an array"),
        ([{"id": "a_b_0", "question": "Q", "answer": None}], "record 1: answer: expected text, found null"),
        ([{"scene_token": "s", "frame_token": "f", "question": "Q", "pred": 3}], "record 1: pred: expected text, found a number"),
        ([{"scene_token": "s", "question": "Q", "pred": "A"}], "record 1: frame_token: expected text, found nothing"),
        ([{"id": 1, "answer": "A"}], "record 1: id: expected text, found a number"),
        ([{"text": "A"}], "record 1: found the fields text; expected predictions.jsonl"),
        ([3], "record 1: expected an object, found a number"),
        ([], "holds no"),
        ({"id": "a"}, "expected predictions.jsonl of drivekd eval, DriveLM's array"),
        ("text", "expected predictions.jsonl of drivekd eval"),
    ],
)
def test_a_file_that_is_almost_right_is_refused_by_record_and_field(tmp_path: Path, value: Any, told: str) -> None:
    with pytest.raises(DataError) as raised:
        read_given(write(tmp_path / "output.json", value))
    assert told in str(raised.value)


def test_wrong_calls_are_told(tmp_path: Path) -> None:
    data = drivelm(tmp_path)
    request = ScoreRequest(perfect(tmp_path), data, tmp_path / "out")
    with pytest.raises(UsageError, match="--compat: expected drivelm or drivebench, found 'gpt'"):
        score_file(replace(request, compat="gpt"))
    with pytest.raises(DataError, match=r"none\.json: no such file; expected predictions.jsonl"):
        score_file(replace(request, predictions=tmp_path / "none.json"))
    with pytest.raises(DataError, match=r"no answer is for a record of .*; the first: .*no record has this question"):
        score_file(replace(request, predictions=output(tmp_path, ("s9_f9_0", MATTERS, "x"))))
    assert not (tmp_path / "out").exists(), "nothing is written before all is well"
    (tmp_path / "out").mkdir()
    (tmp_path / "out/x").touch()
    with pytest.raises(UsageError, match="is not empty; give a new --out"):
        score_file(request)


def test_the_verb_prints_tables_and_draws_the_sheet(tmp_path: Path, run: Run) -> None:
    predictions, data = perfect(tmp_path), drivelm(tmp_path)
    code, out, err = run("score", str(predictions), "--data", str(data), "--compat", "drivelm", "--out", str(tmp_path / "out"))
    assert code == 0
    assert "accuracy (tag 0)" in out
    assert "action_f1" in out
    assert "only 1 scenes; intervals that draw from so few are too narrow to be believed" in err
    assert (tmp_path / "out/sheet.html").is_file()


def test_a_report_that_cannot_be_written_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise DataError("no space")

    monkeypatch.setattr("drivekd.evaluate.foreign.command.write_json", fail)
    with pytest.raises(DataError, match="no space"):
        score_file(ScoreRequest(perfect(tmp_path), drivelm(tmp_path), tmp_path / "out"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["output.json", "test.json"]
