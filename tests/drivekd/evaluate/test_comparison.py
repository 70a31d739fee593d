"""Two runs are compared question by question, whatever files they were read from."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from drivekd.answered import Answered, Given
from drivekd.evaluate.comparison import compare_runs, grounding
from drivekd.evaluate.scoring import score
from drivekd.sample import Sample

QUESTION = "Which way? Options: A. Left. B. Right."


def answered(index: int, text: str, source: str = "a.json") -> Answered:
    sample = Sample(f"{source}, record {index}", "planning", QUESTION, "A", (Path(f"{index}.jpg"),), "choice", scene=f"s{index}")
    return Answered(sample, Given(text))


def test_questions_pair_whatever_their_file_and_order() -> None:
    first = [answered(index, "A" if index % 2 else "B") for index in range(40)]
    second = [answered(index, "A", "b.json") for index in reversed(range(5, 45))]
    found = compare_runs(first, second)
    assert (found.only_first, found.only_second) == (5, 5)
    row = next(row for row in found.rows if (row.metric, row.capability) == ("accuracy", "planning"))
    assert (row.n, row.first, row.second) == (35, 18 / 35, 1.0)
    assert row.separated
    assert row.interval[0] < row.difference < row.interval[1]


def test_the_same_question_twice_pairs_in_its_order() -> None:
    twice = [answered(0, "A"), answered(0, "B")]
    row = compare_runs(twice, twice).rows[0]
    assert (row.n, row.first, row.second) == (2, 0.5, 0.5)


def test_rows_stand_in_the_order_of_a_report() -> None:
    """Of a set they would stand in another order in every process."""
    said = "A car is at <c1,CAM_FRONT,0.5,0.5>."
    run = [Answered(Sample(f"{n}", "planning", "What is there?", said, (Path(f"{n}.jpg"),)), Given(said)) for n in range(4)]
    names = [row.metric for row in compare_runs(run, run).rows if row.capability == "planning"]
    report = score(run, answerer="a", digest="sha256:0")
    assert len(names) > 8
    assert names == [row.metric for row in report.metrics if row.capability == "planning" and row.metric in names]


def test_nothing_in_common_is_no_row() -> None:
    found = compare_runs([answered(0, "A")], [answered(1, "A")])
    assert (found.rows, found.only_first, found.only_second) == ((), 1, 1)


def test_grounding_is_clean_minus_black() -> None:
    clean = [answered(index, "A") for index in range(20)]
    black = [replace(one, given=Given("B" if index % 2 else "A"), setting="NoImage") for index, one in enumerate(clean)]
    row = next(row for row in grounding(clean, black).rows if row.metric == "accuracy")
    assert (row.first, row.second, row.difference) == (0.5, 1.0, 0.5)
