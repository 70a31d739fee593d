"""BLEU, ROUGE_L and CIDEr: by hand on short texts, and their properties. Numbers come from pycocoevalcap on our own words."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from drivekd.evaluate.metrics.language import compare, implementation
from drivekd.evaluate.metrics.tokens import words

pytest.importorskip("pycocoevalcap", reason="needs pycocoevalcap")

CAR = "The red car stops at the light."
BUS = "A bus waits behind the white van."


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        # Seen of Stanford's PTBTokenizer with COCO's list of dropped punctuation.
        ("<c1,CAM_BACK,1088.3,497.5>", "< c1 cam_back ,1088.3,497.5 >"),
        ("<c1,CAM_FRONT,0.4678,0.6772>.", "< c1 cam_front ,0.4678,0.6772 >"),
        ("The car's left-turn signal isn't on!", "the car 's left-turn signal is n't on"),
        ("50% of 1,000 cars (two red) at 10:30...", "50 % of 1,000 cars -lrb- two red -rrb- at 10:30"),
        ("It stops.The light is red", "it stops.the light is red"),
        ("from -0.5 to +3, A/B", "from -0.5 to +3 a/b"),
        ("Ü — \"größer\" 'x'", "ü größer x"),
        ("", ""),
        (" \n.,! ", ""),
    ],
)
def test_words(text: str, expected: str) -> None:
    assert " ".join(words(text)) == expected


def test_bleu_by_hand() -> None:
    """ "a b c d" against "a b c e f": 3 of 4 words, 2 of 3 pairs, 1 of 2 triples, none of 1; one word too short."""
    brevity = math.exp(1 - 5 / 4)
    expected = [3 / 4, (3 / 4 * 2 / 3) ** (1 / 2), (3 / 4 * 2 / 3 * 1 / 2) ** (1 / 3), 0.0]
    assert compare(["a b c d"], ["a b c e f"]).bleu() == pytest.approx([value * brevity for value in expected], abs=1e-3)


def test_bleu_counts_over_the_corpus_and_not_by_answer() -> None:
    """Two of two words here, none of four there: 2/6, where the mean of answers would be 1/2."""
    assert compare(["a b", "x x x x"], ["a b", "c d e f"]).bleu()[0] == pytest.approx(2 / 6)


def test_rouge_l_by_hand() -> None:
    """Longest common subsequence "the car stops": 3 of 4 words said, 3 of 6 true ones; beta 1.2 favours what was found."""
    precision, recall, beta = 3 / 4, 3 / 6, 1.2
    expected = (1 + beta**2) * precision * recall / (recall + beta**2 * precision)
    found = compare(["the car really stops"], ["the red car now stops here"]).rouge_l
    assert found.tolist() == pytest.approx([expected])


def test_cider_by_hand() -> None:
    """Two true answers without a common word; one-word answers have n-grams of order 1 alone, whose cosine is 1: 10 / 4."""
    found = compare(["stop", "go"], ["stop", "turn"])
    assert found.cider.tolist() == pytest.approx([10 / 4, 0.0])
    assert found.cider_of_truth.tolist() == pytest.approx([10 / 4, 10 / 4])
    assert found.measures()["cider"].total() == pytest.approx(0.5)


def test_a_perfect_answerer_scores_one_on_every_metric() -> None:
    truths = [CAR, BUS, "No.", "Brake gently to a stop.", "<c1,CAM_FRONT,0.5000,0.5000>"]
    totals = {name: measure.total() for name, measure in compare(truths, truths).measures().items()}
    assert set(totals) == {"bleu_1", "bleu_2", "bleu_3", "bleu_4", "rouge_l", "cider"}
    assert totals == pytest.approx(dict.fromkeys(totals, 1.0), abs=1e-8)  # pycocoevalcap's own smoothing takes 1e-9


def test_an_order_that_no_true_answer_has_does_not_exist() -> None:
    assert set(compare(["Stop now", "Go"], ["Stop now", "Go"]).measures()) == {"bleu_1", "bleu_2", "rouge_l", "cider"}


def test_a_corpus_of_one_answer_has_no_cider() -> None:
    """Nothing is rare among one: the reference implementation gives 0 to a perfect answer."""
    assert "cider" not in compare([CAR], [CAR]).measures()


@pytest.mark.parametrize("empty", ["", " ", "...", "\n"])
def test_an_empty_answer_scores_nothing(empty: str) -> None:
    totals = {name: measure.total() for name, measure in compare([empty, empty], [CAR, BUS]).measures().items()}
    assert totals == pytest.approx(dict.fromkeys(totals, 0.0), abs=1e-6)


def test_punctuation_alone_as_truth_is_no_perfect_match_of_nothing() -> None:
    assert compare(["", "x"], ["...", CAR]).rouge_l.tolist() == [0.0, 0.0]


@given(st.lists(st.tuples(st.text("ab cd.", max_size=12), st.text("ab cd.", max_size=12)), min_size=1, max_size=6))
def test_every_metric_lies_between_nothing_and_all(pairs: list[tuple[str, str]]) -> None:
    answers, truths = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    if not any(words(truth) for truth in truths):
        return
    for name, measure in compare(answers, truths).measures().items():
        assert -1e-9 <= measure.total() <= 1 + 1e-9, name


def test_the_sums_of_bleu_are_those_of_the_reference() -> None:
    from pycocoevalcap.bleu.bleu import Bleu

    answers, truths = ["the car stops here", "a b", "no"], [CAR, BUS, "No."]
    references = {index: [" ".join(words(text))] for index, text in enumerate(truths)}
    results = {index: [" ".join(words(text))] for index, text in enumerate(answers)}
    expected, _ = Bleu(4).compute_score(references, results, verbose=0)
    np.testing.assert_allclose(compare(answers, truths).bleu(), expected, rtol=1e-9)


def test_the_implementation_is_named() -> None:
    assert implementation().startswith("pycocoevalcap 1")
