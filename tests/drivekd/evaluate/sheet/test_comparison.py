"""Two runs beside each other: the same questions, paired, and no difference claimed that is not there."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_fixtures import Run
from scored_evaluation import Model, evaluation, right_in, samples, write_lines

from drivekd.errors import UsageError
from drivekd.evaluate.predictions import answers_in
from drivekd.evaluate.sheet.comparison import write_comparison
from drivekd.evaluate.sheet.paired import paired


def compared(folders: list[Path], out: Path) -> dict[str, Any]:
    write_comparison(folders, out)
    return json.loads((out / "comparison.json").read_text(encoding="utf-8"))  # type: ignore[no-any-return]


def first_row(result: dict[str, Any], index: int = 0) -> dict[str, Any]:
    return result["comparisons"][index]["rows"][0]["result"]  # type: ignore[no-any-return]


def runs(tmp_path: Path, *models: Model, scenes: int = 24) -> list[Path]:
    asked = samples(tmp_path, scenes)
    return [evaluation(tmp_path / str(n), asked, model, seed=n, name=f"run{n}") for n, model in enumerate(models)]


def test_a_better_run_is_found_with_its_wins_and_losses(tmp_path: Path) -> None:
    folders = runs(tmp_path, right_in(0.3), right_in(0.95))
    result = compared(folders, tmp_path / "out")
    row = first_row(result)
    assert row["n"] == 72 == row["wins"] + row["losses"] + row["ties"]
    assert row["difference"] == pytest.approx(row["second"] - row["first"]) == pytest.approx((row["wins"] - row["losses"]) / 72)
    assert row["interval"][0] > 0
    text = (tmp_path / "out" / "sheet.md").read_text(encoding="utf-8")
    assert "the second is better by" in text
    assert "## Where run1/final is better" in text and text.count("### ") >= 8
    assert (tmp_path / "out" / "sheet.html").is_file()


def test_a_run_beside_itself_differs_in_nothing_and_claims_nothing(tmp_path: Path) -> None:
    (folder,) = runs(tmp_path, right_in(0.6))
    result = compared([folder, folder], tmp_path / "out")
    row = first_row(result)
    assert (row["difference"], row["wins"], row["losses"], row["ties"]) == (0.0, 0, 0, 72)
    assert row["interval"][0] < 0 < row["interval"][1]
    text = (tmp_path / "out" / "sheet.md").read_text(encoding="utf-8")
    assert "do not tell the two runs apart" in text
    assert "one and the same model" in text
    assert result["runs"][0]["name"] != "" and "is better" not in text.replace("second is better", "")


def test_questions_are_matched_by_what_they_are(tmp_path: Path) -> None:
    """Not by their place: the second run has another order, another folder of pictures and lacks some."""
    first, second = runs(tmp_path, right_in(0.5), right_in(0.5))
    lines = answers_in(first)
    moved = [
        replace(
            line,
            answered=replace(
                line.answered,
                sample=replace(
                    line.answered.sample,
                    source="elsewhere.json, record 1",
                    images=tuple(Path("/elsewhere") / path.name for path in line.answered.sample.images),
                ),
            ),
        )
        for line in lines[8:]
    ]
    renumbered = [replace(line, index=index) for index, line in enumerate(reversed(moved))]
    write_lines(second, renumbered)
    result = compared([first, second], tmp_path / "out")
    assert [(run["compared"], run["only_here"]) for run in result["runs"]] == [(88, 8), (88, 0)]
    row = first_row(result)
    assert (row["n"], row["wins"], row["losses"], row["difference"]) == (66, 0, 0, 0.0)
    assert "were asked different questions" in (tmp_path / "out" / "sheet.md").read_text(encoding="utf-8")


def test_a_question_that_stands_twice_is_matched_twice(tmp_path: Path) -> None:
    (folder,) = runs(tmp_path, right_in(0.5), scenes=2)
    lines = answers_in(folder)
    write_lines(folder, [replace(line, index=index) for index, line in enumerate([*lines, *lines])])
    assert compared([folder, folder], tmp_path / "out")["runs"][0]["compared"] == 16


def test_tags_are_compared_by_their_f1_and_apart_from_accuracy(tmp_path: Path) -> None:
    result = compared(runs(tmp_path, right_in(0.0), right_in(1.0)), tmp_path / "out")
    rows = result["comparisons"][0]["rows"]
    assert {row["kind"] for row in rows} == {"closed", "tags"}
    (tags,) = [row["result"] for row in rows if row["kind"] == "tags" and row["scope"] == "all"]
    assert (tags["n"], tags["first"], tags["second"], tags["wins"]) == (24, 0.0, 1.0, 24)
    assert 0.8 < tags["interval"][0] < 1.0  # 24 scenes are not all scenes


def test_words_are_compared_apart_from_what_is_right_or_wrong(tmp_path: Path) -> None:
    asked = [replace(one, answer="Slow down and stop.") for one in samples(tmp_path, 12) if one.topic == "objects"]
    folders = [
        evaluation(tmp_path / name, asked, right_in(share, wrong="Slow on."), name=name)
        for name, share in (("a", 0.0), ("b", 1.0))
    ]
    (whole, *_) = compared(folders, tmp_path / "out")["comparisons"][0]["rows"]
    assert (whole["kind"], whole["result"]["second"], whole["result"]["wins"]) == ("words", 1.0, 12)
    assert 0 < whole["result"]["first"] < 0.6
    assert "Other open questions: mean ROUGE" in (tmp_path / "out" / "sheet.md").read_text(encoding="utf-8")


def test_several_runs_are_each_measured_against_the_first(tmp_path: Path) -> None:
    result = compared(runs(tmp_path, right_in(0.5), right_in(0.9), right_in(0.1)), tmp_path / "out")
    assert [(one["first"], one["second"]) for one in result["comparisons"]] == [
        ("run0/final", "run1/final"),
        ("run0/final", "run2/final"),
    ]
    assert first_row(result, 0)["difference"] > 0 > first_row(result, 1)["difference"]


def test_the_command_compares_folders_and_scores_one(tmp_path: Path, run: Run) -> None:
    first, second = map(str, runs(tmp_path, right_in(0.3), right_in(0.9), scenes=4))
    code, out, err = run("score", first, second, "--out", str(tmp_path / "out"))
    assert code == 0, err
    assert "run1/final (second) minus run0/final (first). Choice and yes/no questions: accuracy" in out
    assert "run1/final (second) minus run0/final (first). Open questions with object tags" in out
    assert "Only 4 scenes" in err
    assert str(tmp_path / "out" / "sheet.html") in err
    code, _, err = run("score", first, second, "--out", str(tmp_path / "out"), "--data", "x.json")
    assert code == 2 and "--data, --compat, --reference, --image-root are for one" in err
    code, _, err = run("score", first, "--out", str(tmp_path / "out2"))
    assert code == 2 and "--data is missing" in err
    code, _, err = run("score", first, second, "--out", first)
    assert code == 2 and "is an evaluation's folder, whose own sheet would be lost" in err


def test_what_cannot_be_compared_is_told(tmp_path: Path) -> None:
    (folder,) = runs(tmp_path, right_in(0.5), scenes=2)
    with pytest.raises(UsageError, match="two evaluation folders or more, found 1"):
        write_comparison([folder], tmp_path / "out")
    asked = [replace(one, question=one.question + " Now?") for one in samples(tmp_path / "other", 2)]
    other = evaluation(tmp_path / "other-run", asked, right_in(0.5))
    with pytest.raises(UsageError, match="no question in common"):
        write_comparison([folder, other], tmp_path / "out")
    assert not (tmp_path / "out").exists()


# --- the interval ---------------------------------------------------------------------------------------------------


def test_pairing_takes_out_what_is_hard_for_both() -> None:
    """Scenes of very different difficulty, the second run better by one question in ten everywhere."""
    rng = np.random.default_rng(0)
    clusters, first, second = [], [], []
    for scene in range(40):
        ability = rng.random()
        for number in range(10):
            right = rng.random() < ability
            clusters.append(f"s{scene}")
            first.append(float(right))
            second.append(1.0 if number == 0 else float(right))
    result = paired(first, second, clusters)
    low, high = result.interval
    assert result.is_decided and low < result.difference < high
    assert high - low < 0.05
    unpaired = paired(first, list(rng.permutation(second)), list(rng.permutation(clusters)))
    assert unpaired.interval[1] - unpaired.interval[0] > 2 * (high - low)


def test_scenes_are_drawn_whole() -> None:
    """Ten questions of one scene that differ alike are one finding, not ten."""
    first = [0.0] * 40
    second = [1.0] * 10 + [0.0] * 30
    few = paired(first, second, ["a"] * 10 + ["b"] * 10 + ["c"] * 10 + ["d"] * 10)
    many = paired(first, second, [str(n) for n in range(40)])
    assert not few.is_decided and many.is_decided


def test_where_resampling_would_be_certain_the_bound_is_exact() -> None:
    room = 1 - 0.025 ** (1 / 5)
    scenes = ["a", "b", "c", "d", "e"]
    assert paired([0.0] * 5, [0.0] * 5, scenes).interval == pytest.approx((-room, room))
    assert paired([0.0] * 5, [1.0] * 5, scenes).interval == pytest.approx((1 - room, 1.0))
    assert paired([0.0, 1.0], [1.0, 1.0], ["a", "a"]).interval == (-1.0, 1.0)
    with pytest.raises(ValueError, match="a difference of nothing"):
        paired([], [], [])
