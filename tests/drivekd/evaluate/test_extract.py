"""Strict extraction: what a text states, and None for what it does not."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drivekd.evaluate.extract import choice, options, yes_no

MOVING = (
    "What is the moving status of object <c1,CAM_FRONT,0.4678,0.6772>? "
    "Please select the correct answer from the following options: A. Going ahead. B. Turn left. C. Turn right."
)
NESTED = "Which? Options: A. Left. B. Slightly left. C. Not moving."
BEHAVIOR = (
    "Predict the behavior of the ego vehicle. Please select the correct answer from the following options: "
    "A. The ego vehicle is going straight. The ego vehicle is driving fast. "
    "B. The ego vehicle is going straight. The ego vehicle is not moving."
)


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        # The eight hard cases of real outputs.
        ("C. Turn right. The object is a sedan.", "C"),
        ("The answer is B, because a car is turning.", "B"),
        ("Final: {A. Going ahead.}  \nObject: black sedan", "A"),
        ("It will turn left.", "B"),
        ("a car is there", None),
        (" A", "A"),
        ("**Answer:** C", "C"),
        ("Final: C. The ego vehicle is slightly steering", "C"),
        # The article is never option A.
        ("A car is there.", None),
        ("Final: A car is within a lane", None),
        ("Final: C. It stays within a lane", "C"),
        ("The answer is a car.", None),
        ("A car will turn right.", "C"),
        # A is stated all the same by a delimiter, an end or a reason.
        ("A", "A"),
        ("A.\n", "A"),
        ("A, Explanation: it moves.", "A"),
        ("The answer is A because it moves.", "A"),
        ("The correct answer is (A) Going ahead", "A"),
        ("Final: A\nSupport: it moves", "A"),
        # Markers of several shapes, stronger ones first.
        ("ANSWER: B", "B"),
        ("The answer is B because it turns", "B"),
        ("I choose option B", "B"),
        ("The best option is C.", "C"),
        ("(B) Turn left", "B"),
        ("B) Turn left", "B"),
        ("A. Going ahead is wrong. Final answer: C", "C"),
        # Undecidable.
        ("The answer is B. No, the answer is C.", None),
        ("Option A is wrong, option B is right", None),
        ("Answer: F", None),
        ("F. Backwards", None),
        ("turn left or turn right", None),
        ("It will not turn left.", None),
        ("It doesn't turn left.", None),
        ("It will turn leftwards.", None),
        ("It will return left.", None),
        ("b", None),
        ("", None),
        ("Yes.", None),
    ],
)
def test_choice(text: str, letter: str | None) -> None:
    assert choice(text, MOVING) == letter


@pytest.mark.parametrize(
    ("text", "letter"),
    [("slightly left", "B"), ("It goes left", "A"), ("left, no, slightly left", None), ("it is not moving", "C")],
)
def test_an_option_inside_another_is_not_named_by_it(text: str, letter: str | None) -> None:
    assert choice(text, NESTED) == letter


def test_option_texts_of_several_sentences() -> None:
    assert choice("The ego vehicle is going straight. The ego vehicle is not moving.", BEHAVIOR) == "B"
    assert choice("The ego vehicle is going straight.", BEHAVIOR) is None


def test_without_options_a_stated_letter_still_counts() -> None:
    assert choice("The answer is D.", "Which one?") == "D"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Yes.", "yes"),
        ("no", "no"),
        ("**Yes**, two cars.", "yes"),
        ("No, it is not.", "no"),
        ("Final: No", "no"),
        ("The answer is yes.", "yes"),
        ("Answer: yes. Final answer: no.", None),
        ("Not really", None),
        ("yesterday", None),
        ("None, no, none.", None),
        ("There is no car.", None),
        ("", None),
    ],
)
def test_yes_no(text: str, expected: str | None) -> None:
    assert yes_no(text) == expected


@given(st.text(alphabet=st.sampled_from("ABCDEF abc.:,()\n*finaloptionanswer"), max_size=60))
def test_only_offered_letters_come_out(text: str) -> None:
    assert choice(text, MOVING) in {None, *options(MOVING)}


@given(st.sampled_from("ABC"), st.sampled_from(["{}", "{}.", "({})", "Answer: {}", "Final: {}.", "**{}**", "The answer is {}."]))
def test_a_stated_letter_comes_out(letter: str, form: str) -> None:
    assert choice(form.format(letter), MOVING) == letter
    assert choice(f"{form.format(letter)}\n{options(MOVING)[letter]}.", MOVING) == letter
