"""Baselines, intervals and tag matching on hand-computed cases and against slower obvious versions."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drivekd.evaluate.extract.named_fields import field_names, is_schema_valid
from drivekd.evaluate.metrics import (
    Item,
    TagCounts,
    accuracy,
    balanced_accuracy,
    bootstrap_interval,
    excludes,
    majority_baseline,
    match_tags,
    random_baseline,
)
from drivekd.tags import Tag, find_tags


def item(answer: str, *texts: str, topic: str = "t") -> Item:
    """A choice among `texts`, of which the one equal to `answer` is right."""
    classes = dict(zip("ABCDE", texts, strict=False))
    return Item(topic, classes, next(letter for letter, text in classes.items() if text == answer), "scene")


def tag(x: float, y: float = 0.0, camera: str = "CAM_FRONT") -> Tag:
    """x, y in pixels of 1600x900."""
    return Tag("c1", camera, x / 1600, y / 900)


def test_accuracy() -> None:
    assert accuracy([True, False, True, True]) == 0.75
    with pytest.raises(ValueError, match="nothing"):
        accuracy([])


def test_majority_counts_option_texts_not_letters() -> None:
    items = [item("red", "red", "green"), item("red", "green", "red"), item("green", "red", "green")]
    assert majority_baseline(items).correct == (True, True, False)
    assert majority_baseline(items).from_reference == (False, False, False)


def test_majority_is_taken_per_topic_and_from_the_reference_where_it_has_the_topic() -> None:
    items = [item("yes", "yes", "no", topic="a"), item("no", "yes", "no", topic="a"), item("no", "yes", "no", topic="b")]
    reference = [item("no", "yes", "no", topic="a")] * 3 + [item("yes", "yes", "no", topic="c")] * 9
    majority = majority_baseline(items, reference)
    assert majority.correct == (False, True, True)
    assert majority.from_reference == (True, True, False)


def test_majority_guesses_among_the_offered_options() -> None:
    reference = [item("left", "left", "back")] * 5 + [item("on", "on", "back")] * 3
    assert majority_baseline([item("on", "on", "back")], reference).correct == (True,)


def test_a_reference_may_make_the_majority_worse_than_the_files_own() -> None:
    items = [item("no", "yes", "no")] * 4
    assert accuracy(majority_baseline(items).correct) == 1.0
    assert accuracy(majority_baseline(items, [item("yes", "yes", "no")]).correct) == 0.0


def test_random_baseline() -> None:
    assert random_baseline([item("a", "a", "b"), item("a", "a", "b", "c", "d")]) == pytest.approx((1 / 2 + 1 / 4) / 2)


def test_balanced_accuracy() -> None:
    assert balanced_accuracy(["yes", "no", "no", "no"], ["no", "no", "no", None]) == pytest.approx((0 + 2 / 3) / 2)
    assert balanced_accuracy(["yes", "yes"], ["yes", "yes"]) is None
    assert balanced_accuracy([], []) is None


def test_interval_covers_the_true_accuracy() -> None:
    """Scenes of ten questions that are right or wrong together: 95 % of the intervals hold the true .7."""
    generator = np.random.default_rng(7)
    clusters = [f"scene {index // 10}" for index in range(600)]
    covered = []
    for trial in range(200):
        scenes = generator.beta(1.4, 0.6, 60)  # mean .7, strongly clustered
        correct = generator.random(600) < np.repeat(scenes, 10)
        low, high = bootstrap_interval(correct.tolist(), clusters, seed=trial, resamples=400)
        covered.append(low <= 0.7 <= high)
    # 200 trials at .95 have a standard deviation of .015; three of them.
    assert 0.90 <= np.mean(covered) <= 1.0


def test_clusters_widen_the_interval() -> None:
    correct = ([True] * 10 + [False] * 10) * 10
    by_scene = bootstrap_interval(correct, [str(index // 10) for index in range(200)])
    by_record = bootstrap_interval(correct, [str(index) for index in range(200)])
    assert by_scene[1] - by_scene[0] > 2 * (by_record[1] - by_record[0])


def test_interval_of_single_records_is_near_the_binomial_one() -> None:
    low, high = bootstrap_interval([True] * 300 + [False] * 100, [str(index) for index in range(400)])
    half = 1.96 * np.sqrt(0.75 * 0.25 / 400)
    # Percentiles of 2,000 resamples of a grid of 1/400: a few steps of it.
    assert (low, high) == pytest.approx((0.75 - half, 0.75 + half), abs=0.01)


def test_interval_is_seeded_and_chunked_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    correct, clusters = [True, False, True] * 30, [str(index**2 % 23) for index in range(90)]
    whole = bootstrap_interval(correct, clusters, seed=3)
    assert len({bootstrap_interval(correct, clusters, seed=seed) for seed in range(5)}) > 1
    monkeypatch.setattr("drivekd.evaluate.metrics.intervals._CHUNK", 1000)
    assert bootstrap_interval(correct, clusters, seed=3) == whole


def test_interval_claims_no_certainty() -> None:
    assert bootstrap_interval([True] * 5, list("abcde")) == (pytest.approx(0.025 ** (1 / 5)), 1.0)
    assert bootstrap_interval([False] * 5, list("abcde")) == (0.0, pytest.approx(1 - 0.025 ** (1 / 5)))
    assert bootstrap_interval([True] * 50, ["one"] * 50) == (pytest.approx(0.025), 1.0)
    assert bootstrap_interval([True, False], ["one", "one"]) == (0.0, 1.0)


def test_scenes_that_are_all_alike_claim_no_certainty() -> None:
    half = [True, False] * 10
    scenes = [str(place // 2) for place in range(20)]
    low, high = bootstrap_interval(half, scenes)
    edge = 0.025**0.1
    assert (low, high) == pytest.approx((edge / 2, edge / 2 + 1 - edge))
    assert low < 0.4 and high > 0.6, "ten scenes, each half right, do not show that it is better than .4"


def test_excludes() -> None:
    assert [excludes((0.4, 0.6), value) for value in (0.3, 0.4, 0.5, 0.6, 0.7)] == [True, False, False, False, True]


def test_tag_f1_by_hand() -> None:
    """Two of three true tags are met; the third prediction is of another camera, the fourth 16 px off (the limit is open)."""
    true = [tag(100, 100), tag(800, 400), tag(1200, 500)]
    predicted = [tag(107, 108), tag(800, 400), tag(1200, 500, "CAM_BACK"), tag(1216, 500)]
    counts = match_tags(predicted, true)
    assert counts == TagCounts(2, 4, 3)
    assert (counts.precision, counts.recall, counts.f1) == pytest.approx((2 / 4, 2 / 3, 4 / 7))


def test_optimal_beats_greedy() -> None:
    """Closest first pairs 10 with 12 and leaves 24 and 0 alone; the best matching pairs 10-0 and 24-12."""
    assert match_tags([tag(10), tag(24)], [tag(12), tag(0)]) == TagCounts(2, 2, 2)


def test_a_tag_is_used_once() -> None:
    assert match_tags([tag(10)] * 3, [tag(10)]).matched == 1
    assert match_tags([tag(10)], [tag(10)] * 3).matched == 1


def test_tags_of_nothing() -> None:
    assert match_tags([], []).f1 == 1.0
    assert match_tags([], [tag(1)]).f1 == match_tags([tag(1)], []).f1 == 0.0
    assert TagCounts(1, 2, 3) + TagCounts(1, 1, 1) == TagCounts(2, 3, 4)


@settings(deadline=None)
@given(st.lists(st.integers(0, 60), max_size=5), st.lists(st.integers(0, 60), max_size=5))
def test_matching_is_maximum(a: list[int], b: list[int]) -> None:
    longer, shorter = sorted((a, b), key=len, reverse=True)
    best = max(sum(abs(x - y) < 16 for x, y in zip(shorter, order, strict=False)) for order in permutations(longer, len(shorter)))
    assert match_tags([tag(x + 0.25) for x in a], [tag(x + 0.25) for x in b]).matched == best


def test_normalised_tags_match_in_pixels() -> None:
    (predicted,), (true,) = find_tags("<c1,CAM_BACK,0.6800,0.5530>"), find_tags("<c1,CAM_BACK,1088.3,497.5>", "pixel")
    assert match_tags([predicted], [true]).matched == 1


def test_schema() -> None:
    example = "Final: B. Turn left.  \nObject: a car  \nPosition & orientation: ahead"
    assert field_names(example) == ("Final", "Object", "Position & orientation")
    assert field_names("- Action: stop\nno field: here\nA ratio of 3:4") == ("Action",)
    assert is_schema_valid("Final: A.\nObject: bus\nNote: x\nPosition & orientation: left", example)
    assert not is_schema_valid("Object: bus\nFinal: A.\nPosition & orientation: left", example)
    assert not is_schema_valid("B. Turn left.", example)
