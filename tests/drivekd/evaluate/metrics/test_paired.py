"""Intervals of any metric, and the difference of two runs on the same questions."""

from __future__ import annotations

import numpy as np
import pytest

from drivekd.evaluate.metrics import Measure, estimate, paired_difference
from drivekd.evaluate.metrics.accuracy import balanced_accuracy_measure
from drivekd.evaluate.metrics.measures import mean_of


def test_a_metric_of_sums_is_resampled_as_such() -> None:
    """F1 of pooled counts: 2 * 2 / (5 + 4), not the mean of the answers' own."""
    measure = Measure(np.array([[1.0, 1, 2], [1, 4, 2]]), lambda sums: 2 * sums[..., 0] / (sums[..., 1] + sums[..., 2]))
    found = estimate(measure, ["a", "b"])
    assert (found.n, found.value) == (2, pytest.approx(4 / 9))
    assert found.interval == pytest.approx((2 / 6, 2 / 3)), "only the second scene, only the first"


def test_a_value_without_a_bound_has_no_end_to_be_certain_at() -> None:
    assert estimate(mean_of([3.0, 3.0], maximum=None), ["a", "b"]).interval == (3.0, 3.0)
    assert estimate(mean_of([3.0, 5.0], maximum=None), ["a", "a"]).interval == (0.0, float("inf"))
    with pytest.raises(ValueError, match="nothing"):
        estimate(mean_of([]), [])


def test_balanced_accuracy_of_one_class_is_no_number_and_draws_without_a_class_do_not_count() -> None:
    assert np.isnan(balanced_accuracy_measure(["yes", "yes"], ["yes", None]).total())
    measure = balanced_accuracy_measure(["yes", "no", "no"], ["yes", "no", None])
    found = estimate(measure, ["a", "b", "c"])
    assert found.value == pytest.approx((1 + 1 / 2) / 2)
    assert found.interval == (0.5, 1.0)


def test_paired_runs_are_told_apart_where_two_intervals_overlap() -> None:
    """The second run is right wherever the first is, and in every fourth scene besides; scenes themselves vary far more."""
    generator = np.random.default_rng(1)
    first = generator.random(200) < 0.5
    second = first | (np.arange(200) % 4 == 0)
    scenes = [str(index) for index in range(200)]
    intervals = [estimate(mean_of(run.tolist()), scenes).interval for run in (first, second)]
    assert intervals[0][1] > intervals[1][0]
    found = paired_difference(mean_of(first.tolist()), mean_of(second.tolist()), scenes)
    assert found.value == pytest.approx(found.second - found.first)
    assert found.interval[0] < found.value < found.interval[1]
    assert found.separated


def test_equal_runs_differ_by_nothing() -> None:
    """Three scenes say little: 1 - .025 ** (1 / 3) = .7076 to either side."""
    run = mean_of([True, False, True])
    found = paired_difference(run, run, ["a", "b", "c"])
    assert (found.value, found.separated) == (0.0, False)
    assert found.interval == pytest.approx((-0.7076, 0.7076), abs=1e-4)


@pytest.mark.parametrize("scenes", [3, 6])
def test_a_run_that_wins_every_question_is_believed_as_far_as_its_scenes_go(scenes: int) -> None:
    """.025 ** (1 / 3) = .2924, .025 ** (1 / 6) = .5407: the least difference that so many scenes leave."""
    names = [str(index) for index in range(scenes)]
    found = paired_difference(mean_of([False] * scenes), mean_of([True] * scenes), names)
    assert found.interval == pytest.approx(({3: 0.2924, 6: 0.5407}[scenes], 1.0), abs=1e-4)
    assert found.separated


def test_one_scene_says_nothing_about_a_difference() -> None:
    found = paired_difference(mean_of([True, False]), mean_of([True, True]), ["a", "a"])
    assert (found.value, found.interval, found.separated) == (0.5, (-1.0, 1.0), False)


def test_runs_of_other_lengths_are_no_pair() -> None:
    with pytest.raises(ValueError, match="2 and 1"):
        paired_difference(mean_of([True, False]), mean_of([True]), ["a", "b"])
