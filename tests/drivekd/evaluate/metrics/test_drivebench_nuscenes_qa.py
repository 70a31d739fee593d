"""Upstream's rule of choices, columns by capability and group, and NuScenes-QA's exact match."""

from __future__ import annotations

import pytest

from drivekd.evaluate.metrics.drivebench import PAPER, by_group, upstream_choice
from drivekd.evaluate.metrics.nuscenes_qa import Exact, exact_rows, is_exact

GROUPS = {"weather": ("Fog", "Rain"), "motion": ("ZoomBlur",)}


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("Final: C. It stays within a lane", "A"),  # the defect: an article is choice A
        ("C. Turn right.", "C"),
        ("b", "B"),
        ("Option B is wrong", "B"),
        ("B or C", "B"),
        ("It turns.", None),
        ("", None),
        ("d", None),  # not offered
    ],
)
def test_upstreams_choice(text: str, letter: str | None) -> None:
    assert upstream_choice(text, "ABC") == letter


def test_columns_and_groups_by_hand() -> None:
    rows = by_group(
        {
            "clean": {"perception": 0.8, "reasoning": 0.6, "planning": 0.4},
            "Fog": {"perception": 0.6, "reasoning": 0.4, "planning": 0.2},
            "Rain": {"perception": 0.4, "reasoning": 0.2, "planning": 0.0},
            "NoImage": {"perception": 0.3},
        },
        GROUPS,
    )
    assert [(row.name, row.group) for row in rows] == [
        ("clean", ""),
        ("NoImage", ""),
        ("weather", "weather"),
        ("Fog", "weather"),
        ("Rain", "weather"),
    ]
    cells = [row.cells() for row in rows]
    assert cells[0] == [0.8, 0.6, 0.4, pytest.approx(0.6)]
    assert cells[1] == [0.3, None, None, None], "an average of what is there is no average of three"
    assert cells[2] == pytest.approx([0.5, 0.3, 0.1, 0.3])


def test_a_group_has_no_mean_of_a_capability_that_one_setting_lacks() -> None:
    rows = by_group({"Fog": {"perception": 0.5, "planning": 0.5}, "Rain": {"perception": 0.3}}, GROUPS)
    assert rows[0].cells() == [0.4, None, None, None]


def test_a_group_that_is_not_complete_says_so() -> None:
    rows = by_group({"Fog": {"perception": 0.5, "reasoning": 0.5, "planning": 0.5}}, GROUPS)
    assert [row.name for row in rows] == ["weather (1 of 2)", "Fog"]


def test_the_papers_averages_are_plain_means() -> None:
    for _, perception, reasoning, planning, avg in PAPER:
        assert (perception + reasoning + planning) / 3 == pytest.approx(avg, abs=0.0051)


@pytest.mark.parametrize(
    ("text", "truth", "expected"),
    [
        ("Yes.", "yes", True),
        (" 2 ", "2", True),
        ("Not  Standing", "not standing", True),
        ("２", "2", True),
        ("two", "2", False),
        ("yes, it is", "yes", False),
        ("", "", False),
        ("...", "yes", False),
    ],
)
def test_exact_match(text: str, truth: str, expected: bool) -> None:
    assert is_exact(text, truth) is expected


def test_rows_by_type_and_hop() -> None:
    answers = [Exact("count", 0, True, "a"), Exact("count", 1, False, "b"), Exact("exist", 0, True, "a")]
    rows = {(row.type, row.hop): (row.n, row.accuracy) for row in exact_rows(answers)}
    assert rows == {
        ("", None): (3, pytest.approx(2 / 3)),
        ("", 0): (2, 1.0),
        ("", 1): (1, 0.0),
        ("count", None): (2, 0.5),
        ("count", 0): (1, 1.0),
        ("count", 1): (1, 0.0),
        ("exist", None): (1, 1.0),
        ("exist", 0): (1, 1.0),
    }
    assert exact_rows([]) == []
