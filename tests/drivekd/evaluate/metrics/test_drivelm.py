"""DriveLM's rules on a file of our own, ten questions with the arithmetic beside them."""

from __future__ import annotations

import math

import pytest

from drivekd.evaluate.metrics.drivelm import Asked, drivelm_score, f1_of, language_score, matched_points

pytest.importorskip("pycocoevalcap", reason="needs pycocoevalcap")

# Frame 1: of three objects two are found (8 + 7.9 = 15.9 < 16 px; the camera is another one), the third is 16.0 px off.
IMPORTANT = "<c1,CAM_BACK,100.0,200.0>, <c2,CAM_BACK,300.0,400.0>, <c3,CAM_FRONT,500.0,600.0>"
FOUND = "<c1,CAM_FRONT,108.0,207.9>, <c2,CAM_BACK,300.0,400.0>, <c3,CAM_FRONT,508.0,608.0>"
# Frame 2: nothing is found.
SECOND = "<c1,CAM_FRONT,700.0,100.0>"

TEN = [
    Asked("1", (2,), "What matters?", IMPORTANT, FOUND),
    Asked("1", (0,), "What of <c1,CAM_BACK,100.0,200.0>? A. Left. B. Right.", "A", "A"),  # matched: counts, right
    Asked("1", (0,), "What of <c2,CAM_BACK,300.0,400.0>? A. Left. B. Right.", "B", "B."),  # counts; "B." is not "B"
    Asked("1", (0,), "What of <c3,CAM_FRONT,500.0,600.0>? A. Left. B. Right.", "A", "A"),  # not matched: gated, though right
    Asked("1", (0,), "Is it wet?", "No.", "No."),  # without coordinates: counts, right
    Asked("1", (3,), "First?", "<c1,CAM_BACK,100.0,200.0> then <c2,CAM_BACK,300.0,400.0>", "<c2,CAM_BACK,300.0,400.0>"),
    Asked("1", (1,), "What is safe?", "Brake.", "Brake."),
    Asked("2", (2,), "What matters?", SECOND, "a car"),
    Asked("2", (0,), "What of <c1,CAM_FRONT,700.0,100.0>? A. Left. B. Right.", "A", "A"),  # gated
    Asked("2", (3,), "First?", "<c1,CAM_FRONT,700.0,100.0>", "none of 3.5"),  # counts: an odd number is dropped, F1 0
]


def test_ten_by_hand() -> None:
    score = drivelm_score(TEN)
    assert score.n == {"accuracy": 3, "judge": 1, "language": 2, "match": 2}
    assert score.gated == 2
    assert score.accuracy == pytest.approx(2 / 3)  # A, (B.), No.
    # Tag 3: one of one said and of two true: P 1, R 1/2, F1 2/3. The other 0. Upstream's 1e-8 moves the eighth digit.
    assert score.f1 == pytest.approx((2 / 3 + 0) / 2, abs=1e-7)
    assert score.left_out == {}


def test_language_of_the_two_tag_2_answers_by_hand() -> None:
    """Words are "< c1 cam_back ,100.0,200.0 >" and so on: 15 + 5 true ones, 15 + 2 said ones.

    The same words, each at most as often as it is true: "<" and ">" three times; c1, c2, c3, cam_back, ",300.0,400.0" and
    cam_front (said twice, true once) once: 12 of 17 said; 20 are true.
    """
    parts = drivelm_score(TEN).language_parts
    assert parts["bleu_1"] == pytest.approx(12 / 17 * math.exp(1 - 20 / 17), abs=1e-6)
    # ROUGE_L of the first: "< c1 > < c2 cam_back ,300.0,400.0 > < c3 cam_front >", 12 of 15 and of 15; of the second nothing.
    assert parts["rouge_l"] == pytest.approx((12 / 15 + 0) / 2)
    bleu = sum(parts[f"bleu_{order}"] for order in (1, 2, 3, 4)) / 4
    assert drivelm_score(TEN).language == pytest.approx((bleu + parts["rouge_l"] + parts["cider"] / 10) / 3)


def test_the_final_score_needs_the_judge() -> None:
    score = drivelm_score(TEN)
    assert (score.match(None), score.final(0.5, None), score.final(None, 0.5)) == (None, None, None)
    assert score.f1 is not None and score.language is not None and score.accuracy is not None
    assert score.match(0.5) == (score.f1 + 0.5) / 2
    expected = 0.2 * score.accuracy + 0.4 * 0.7 + 0.2 * score.language + 0.2 * (score.f1 + 0.5) / 2
    assert score.final(0.7, 0.5) == pytest.approx(expected)


def test_a_perfect_answerer_scores_one() -> None:
    score = drivelm_score([Asked(one.frame, one.tag, one.question, one.truth, one.truth) for one in TEN])
    assert (score.gated, score.accuracy) == (0, 1.0)
    assert score.f1 == pytest.approx(1.0, abs=1e-7)
    # Two captions with words of their own at every order reach CIDEr's 10: language is 1, and so is the final score.
    assert score.language == pytest.approx(1.0, abs=1e-6)
    assert score.final(1.0, 1.0) == pytest.approx(1.0, abs=1e-6)


def test_matching_is_greedy_in_the_order_of_the_answer() -> None:
    """The first point takes the nearer true one, and the second finds nothing, though both could be matched."""
    truth, answer = "10.0,0.0 20.0,0.0", "16.0,0.0 30.0,0.0"
    assert matched_points(answer, truth) == [(20.0, 0.0)]
    assert f1_of(answer, truth) == pytest.approx(0.5, abs=1e-7)


def test_every_point_of_a_question_must_have_been_found() -> None:
    both = "What of <c1,CAM_BACK,100.0,200.0> and <c3,CAM_FRONT,500.0,600.0>?"
    assert drivelm_score([TEN[0], Asked("1", (0,), both, "A", "A")]).gated == 1


def test_whole_numbers_are_no_coordinates() -> None:
    assert matched_points("<c1,CAM_FRONT,100,200>", "100.0,200.0") == []


def test_what_upstream_stops_at_is_counted() -> None:
    asked = [
        Asked("1", (2,), "What matters?", "<c1,CAM_FRONT,100.0,200.0>", "<c1,CAM_FRONT,100.0,200.0>"),
        Asked("1", (1,), "At 5.4 m/s?", "Brake.", "Brake."),
        Asked("1", (0,), "Is it wet?", "No.", None),
        Asked("1", (), "Is it dry?", "No.", "No."),
        Asked("1", (3,), "Where?", "at 3.5", "3.5"),
        Asked("2", (2,), "What matters?", "5.0", "5.0"),
        Asked("2", (0,), "Is it wet?", "No.", "No."),
        Asked("3", (2,), "What matters?", "1.0,2.0", None),
    ]
    score = drivelm_score(asked)
    assert score.left_out == {
        "questions with an odd number of decimals": 1,
        "questions without an answer": 1,
        "questions without one of the tags 0 to 3": 1,
        "true answers with an odd number of decimals": 1,
        "questions of frames whose first one has no answer, or no pairs of decimals in its truth": 3,
    }
    assert (score.accuracy, score.f1, score.n["language"]) == (None, None, 1)


def test_language_weights() -> None:
    parts = {"bleu_1": 0.4, "bleu_2": 0.3, "bleu_3": 0.2, "bleu_4": 0.1, "rouge_l": 0.5, "cider": 2.0}
    assert language_score(parts) == pytest.approx((0.25 + 0.5 + 0.2) / 3)
