"""Which layers and signal `drivekd analyze` picks from curves: the rules, their ties, and the paper's layers where they fail."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from drivekd.analyze.curves import Curves
from drivekd.analyze.picks import first_quarter_peak, last_local_peak, longest_run, pick, pick_signal, spans
from drivekd.sample import CAPABILITIES

pytestmark = pytest.mark.numerics


def test_curves_like_the_papers_give_the_papers_layers() -> None:
    """The values that the paper's figure shows on InternVL3-8B, 28 layers: perception 0, planning -2, reasoning 0..-2."""
    adjacent = [0.63, *np.linspace(0.86, 0.96, 26), 0.39]
    similarity = [0.973, *np.linspace(0.95, 0.80, 25), 0.885, 0.85]
    assert longest_run(adjacent).layers == tuple(range(27))
    assert first_quarter_peak(similarity).layers == (0,)
    assert last_local_peak(similarity).layers == (26,)


@pytest.mark.parametrize(
    ("similarity", "layer", "words"),
    [
        ([0.1, 0.9, 0.2, 0.3, 1.0, 1.0, 1.0, 1.0], 1, "first quarter's (0-1) highest similarity, 0.900"),
        ([0.1, 0.9, 0.2, 0.3, 0.2, 0.2, 0.2], 0, "(0) highest"),  # 7 // 4 = 1 layer
        ([0.5, 0.5, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1], 0, "0.500"),  # equal: the first
        ([0.4], 0, "0.400"),
    ],
)
def test_perception_is_the_first_quarters_peak(similarity: list[float], layer: int, words: str) -> None:
    found = first_quarter_peak(similarity)
    assert found.layers == (layer,)
    assert words in found.reason


@pytest.mark.parametrize(
    ("similarity", "layer", "words"),
    [
        ([0.1, 0.5, 0.2, 0.6, 0.3, 0.9], 3, "0.600 between 0.200 and 0.300"),
        ([0.9, 0.5, 0.6, 0.55], 2, "0.600 between 0.500 and 0.550"),
        ([0.1, 0.5, 0.2, 0.3, 0.9], 1, "layer 1"),  # the final layer is the highest, and no peak before it
        ([0.9, 0.8, 0.7, 0.6], 2, "as in the paper, since no layer's similarity is above both"),
        ([0.1, 0.5, 0.5, 0.2], 2, "as in the paper"),  # a plateau is no peak
        ([0.1, 0.5], 0, "as in the paper"),
        ([0.1], 0, "as in the paper"),
    ],
)
def test_planning_is_the_last_local_peak(similarity: list[float], layer: int, words: str) -> None:
    found = last_local_peak(similarity)
    assert found.layers == (layer,)
    assert words in found.reason


@pytest.mark.parametrize(
    ("adjacent", "layers", "words"),
    [
        ([0.1, 0.9, 0.1, 0.9, 0.95, 0.1], (2, 3, 4), "0.900 to 0.950"),
        ([0.99, 0.1, 0.9], (1, 2), "layers 1-2"),
        ([0.1, 0.9, 0.1, 0.9], (0, 1), "0.900"),  # two of a length: the first
        ([0.1, 0.9, 0.85, 0.9, 0.9], (2, 3, 4), "above 0.85"),  # .85 itself is not above
        ([0.1, 0.9, 0.9], (0, 1, 2), "layers 0-2"),  # a run may reach the final layer
        (
            [0.99, 0.2, 0.3, 0.4],
            (0, 1, 2),
            "as in the paper, since no two layers have an adjacent cosine above 0.85; the highest is 0.400",
        ),
        ([0.99], (0,), "as in the paper"),
    ],
)
def test_reasoning_is_the_longest_run(adjacent: list[float], layers: tuple[int, ...], words: str) -> None:
    found = longest_run(adjacent)
    assert found.layers == layers
    assert words in found.reason


CURVES = Curves(
    adjacent_cosine=(0.5, 0.9, 0.9, 0.4),
    vision_text_cosine=(0.1, 0.2, 0.3, 0.4),
    similarity=(0.9, 0.7, 0.8, 0.6),
    attention_dispersion=(0.1, 0.3, 0.2, 0.4),
    hidden_dispersion=(0.05, 0.4, 0.3, 0.1),
    label_margin_logit=(None,) * 10,
    label_margin_probability=(None,) * 10,
)


@pytest.mark.parametrize(("layers", "signal"), [((0,), "hidden"), ((2,), "attention"), ((0, 1), "attention")])
def test_the_signal_is_the_less_dispersed_at_the_picked_layers(layers: tuple[int, ...], signal: str) -> None:
    assert pick_signal(CURVES, layers, "teacher")[0] == signal


def test_equal_dispersion_keeps_the_papers_signal() -> None:
    equal = replace(CURVES, hidden_dispersion=CURVES.attention_dispersion)
    assert pick_signal(equal, (0, 1), "teacher")[0] == "attention"


def test_the_teacher_decides_the_signal() -> None:
    teacher = replace(CURVES, hidden_dispersion=(0.5, 0.5, 0.5, 0.5))
    assert pick("perception", CURVES, None).signal == "hidden"
    found = pick("perception", CURVES, teacher)
    assert found.signal == "attention"
    assert "the teacher's dispersion there is 0.100 for attention, 0.500 for hidden states" in found.reason


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_without_pairs_the_papers_layers_are_taken_and_it_is_said(capability: Any) -> None:
    found = pick(capability, replace(CURVES, similarity=(), attention_dispersion=(), hidden_dispersion=()), None)
    expected = {"perception": (0,), "reasoning": (0, 1, 2), "planning": (2,)}[capability]
    assert found.student_layers == expected
    assert found.signal == "attention"
    assert "signal attention, the paper's: dispersion needs two samples" in found.reason
    if capability != "reasoning":
        assert "as in the paper, since similarity needs two samples" in found.reason


@pytest.mark.parametrize(("layers", "text"), [((), ""), ((3,), "3"), ((0, 1, 2, 5, 7, 8), "0-2, 5, 7-8")])
def test_spans(layers: tuple[int, ...], text: str) -> None:
    assert spans(layers) == text
