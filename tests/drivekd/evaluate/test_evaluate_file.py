"""`drivekd eval` on a file: what it asks, writes, goes on with, and says."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from recited import Recited

from drivekd.data.readers import read_samples
from drivekd.data.traces import traces_of
from drivekd.errors import ConfigError, DataError, UsageError
from drivekd.evaluate.evaluation import EvalRequest, Evaluated, evaluate_file
from drivekd.evaluate.predictions import answers_in
from drivekd.sample import Sample


def record(number: int, capability: str, question: str, answer: str, form: str) -> dict[str, Any]:
    return {
        "messages": [{"role": "user", "content": f"<image>{question}"}, {"role": "assistant", "content": answer}],
        "images": [f"{number % 3}.png"],
        "question_type": capability,
        "meta": {"kind": form, "scene": f"s{number % 3}"},
    }


@pytest.fixture
def request_(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> EvalRequest:
    """Nine yes/no questions of three capabilities, and one that cannot be scored."""
    for index in range(3):
        Image.fromarray(np.full((20, 30, 3), 80 * index, np.uint8)).save(tmp_path / f"{index}.png")
    names = ("perception", "reasoning", "planning")
    records = [record(n, names[n // 3], f"Is it {n}?", "Yes." if n % 2 else "No.", "yesno") for n in range(9)]
    records.append(record(9, "planning", "Is it red?", "Perhaps.", "yesno"))
    (tmp_path / "test.json").write_text(json.dumps(records), encoding="utf-8")
    return EvalRequest(tmp_path / "model", tmp_path / "test.json", tmp_path / "out")


def right(sample: Sample) -> str:
    return sample.answer or ""


def run(request: EvalRequest, monkeypatch: pytest.MonkeyPatch, answerer: Any = None) -> Evaluated:
    monkeypatch.setattr("drivekd.evaluate.evaluation.open_answerer", lambda *_: answerer or Recited(right))
    return evaluate_file(request)


def test_answers_and_reports_are_written_and_told(request_: EvalRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    found = run(request_, monkeypatch)
    assert [row[:3] for row in found.rows[:2]] == [["all", "9", "1.000"], ["perception", "3", "1.000"]]
    assert "1 of 10 records were not asked: yesno questions whose true answer does not state yes or no" in found.notes
    assert "answers are cut after so many tokens: 512 (the default, as DriveBench decodes; the model does not say)" in found.notes
    assert sorted(path.name for path in request_.out.iterdir()) == ["evaluation.json", "predictions.jsonl", "report.json"]
    assert [line.index for line in answers_in(request_.out)] == list(range(9))
    assert json.loads((request_.out / "report.json").read_text(encoding="utf-8"))["scores"][0]["accuracy"] == 1


def test_the_same_again_asks_nothing_and_another_thing_is_refused(request_: EvalRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    first = run(request_, monkeypatch)
    answerer = Recited(right)
    assert run(request_, monkeypatch, answerer) == first
    assert answerer.asked == []
    moved = replace(request_, overrides=["batch_size=1", "device=cpu"])
    assert run(moved, monkeypatch, answerer) == first, "where and how fast is no other evaluation"
    elsewhere = request_.records.parent / "elsewhere"
    elsewhere.mkdir()
    for picture in request_.records.parent.glob("*.png"):
        shutil.copyfile(picture, elsewhere / picture.name)
    for other, told in (
        (replace(request_, settings="NoImage"), 'settings is ["NoImage"], was ["clean"]'),
        (replace(request_, overrides=["limit=2"]), "limit is 2, was null"),
        (replace(request_, overrides=["precision=bf16"]), 'precision is "bf16", was "fp32"'),
        (replace(request_, image_root=elsewhere), f'image_root is "{elsewhere}", was "{request_.records.parent}"'),
    ):
        with pytest.raises(UsageError, match="holds an evaluation of another thing") as raised:
            run(other, monkeypatch, answerer)
        assert told in str(raised.value)
    request_.records.write_text(request_.records.read_text(encoding="utf-8") + " ", encoding="utf-8")
    with pytest.raises(UsageError, match=r"data is .sha256:.*, was .sha256:"):
        run(request_, monkeypatch, answerer)
    assert answerer.asked == []


def test_several_settings_have_a_report_each(request_: EvalRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    answerer = Recited(right)
    found = run(replace(request_, settings="clean,NoImage,Fog"), monkeypatch, answerer)
    assert {setting for setting, _ in answerer.asked} == {"clean", "NoImage", "Fog"}
    assert [row[0] for row in found.rows if row[1] == "all"] == ["clean", "NoImage", "Fog"]
    assert {path.name for path in request_.out.glob("report*")} == {f"report.{n}.json" for n in ("clean", "NoImage", "Fog")}
    severities = {line.answered.setting: line.answered.severity for line in answers_in(request_.out)}
    assert severities == {"clean": None, "NoImage": None, "Fog": 5}


def test_shards_are_scored_by_the_last(request_: EvalRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = run(replace(request_, out=request_.out.with_name("whole")), monkeypatch)
    first = run(replace(request_, overrides=["shard=2/2"]), monkeypatch)
    assert (first.rows, first.finished) == ([], False)
    assert "6 questions of other shards are open; the last shard that ends scores them all" in first.notes
    assert run(replace(request_, overrides=["shard=1/2"]), monkeypatch) == whole


def test_a_limit_counts_by_capability(request_: EvalRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    found = run(replace(request_, overrides=["limit=2"]), monkeypatch)
    assert [row[:2] for row in found.rows if row[0][0] != " "] == [
        ["all", "6"],
        ["perception", "2"],
        ["reasoning", "2"],
        ["planning", "2"],
    ]
    assert [note for note in found.notes if "not asked" in note] == [
        "1 of 10 records were not asked: yesno questions whose true answer does not state yes or no",
        "3 of 10 records were not asked: beyond the first 2 of their capability",
    ]


def test_answers_that_were_cut_are_counted(request_: EvalRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    class Cut(Recited):
        def answers(self, samples: Any, **options: Any) -> Any:
            keep = options.pop("on_answer")
            cut = {"reasoning": "length"}
            return super().answers(
                samples,
                on_answer=lambda i, given: keep(i, replace(given, finish_reason=cut.get(samples[i].capability, "stop"))),
                **options,
            )

    found = run(request_, monkeypatch, Cut(right))
    assert "clean: 3 of 9 answers were cut there (reasoning 3); --set max_new_tokens=N gives more" in found.notes


def test_pictures_that_are_missing_stop_before_anything_is_asked(request_: EvalRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    (request_.records.parent / "2.png").unlink()
    answerer = Recited(right)
    with pytest.raises(DataError, match=r"record 3: images: no file .*2\.png \(1 of 3 image files are missing\)"):
        run(request_, monkeypatch, answerer)
    assert answerer.asked == [] and not request_.out.exists()
    assert run(replace(request_, settings="NoImage"), monkeypatch).rows, "black pictures are no files"


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"settings": "clean,Foggy"}, UsageError, "'Foggy' is unknown; expected all, or some of clean, NoImage, BitError"),
        ({"settings": "Fog,Fog"}, UsageError, "a setting stands twice"),
        ({"settings": ""}, UsageError, "'' is unknown"),
        ({"overrides": ["shard=0/2"]}, UsageError, "shard is '0/2'"),
        ({"overrides": ["severity=6"]}, ConfigError, "--set: severity = 6"),
        ({"overrides": ["max_new_tokens=0"]}, ConfigError, "--set: max_new_tokens"),
        ({"overrides": ["max_new_tokens={flying: 3}"]}, ConfigError, "--set: max_new_tokens"),
        ({"overrides": ["batchsize=3"]}, ConfigError, "unknown key batchsize; known here: device, precision"),
        ({"overrides": ["device=tpu"]}, ConfigError, "--set: device = 'tpu'"),
    ],
)
def test_wrong_settings_are_named(
    changed: dict[str, Any],
    error: type[Exception],
    message: str,
    request_: EvalRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(error) as raised:
        run(replace(request_, **changed), monkeypatch)
    assert message in str(raised.value)
    assert not request_.out.exists()


def test_what_was_trained_on_is_scored_apart(request_: EvalRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of three scenes the training file holds one; without the file, the traces beside the model tell."""
    train = request_.records.with_name("train.json")
    train.write_text(json.dumps([record(0, "perception", "Is it wet?", "No.", "yesno")]), encoding="utf-8")
    told = (
        "clean: 3 of 9 answers are about scenes, frames or pictures of {}; the report has the scores without them, too (overlap)"
    )
    found = run(replace(request_, reference=train), monkeypatch)
    assert told.format(train) in found.notes
    overlap = json.loads((request_.out / "report.json").read_text(encoding="utf-8"))["overlap"]
    assert (overlap["n"], overlap["marked"], overlap["scores"][0]["n"]) == (9, 3, 6)

    request_.model.mkdir()
    traces = request_.model / "data_traces.safetensors"
    traces_of(read_samples(train)).write(traces)
    assert told.format(traces) in run(replace(request_, out=request_.out.with_name("again")), monkeypatch).notes
    nothing = run(replace(request_, model=request_.model.with_name("other"), out=request_.out.with_name("third")), monkeypatch)
    assert not [note for note in nothing.notes if "trained" in note or "overlap" in note]


def test_a_file_of_open_questions_alone_is_scored_too(request_: EvalRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    records = [record(n, "planning", f"What now, {n}?", "Brake gently to a stop.", "open") for n in range(3)]
    request_.records.write_text(json.dumps(records), encoding="utf-8")
    found = run(request_, monkeypatch)
    assert (found.rows, found.finished) == ([], True)
    assert ["action_f1", "planning", "3", "1.000", "0.292-1.000"] in found.metrics
    assert any("only 3 scenes" in note for note in found.notes)


def test_several_settings_are_set_side_by_side(request_: EvalRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    run(replace(request_, settings="clean,NoImage,Fog"), monkeypatch)
    value = json.loads((request_.out / "settings.json").read_text(encoding="utf-8"))
    assert [row["pictures"] for row in value["rows"]] == ["clean", "NoImage", "weather (1 of 5)", "Fog"]
    assert value["rows"][0]["values"] == [1.0, 1.0, 1.0, 1.0]
    assert {row["difference"] for row in value["grounding"]["rows"]} == {0.0}, "it recites, pictures or not"
    assert not any(row["separated"] for row in value["grounding"]["rows"])
