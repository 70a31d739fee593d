"""Who teaches whom: routed, released and sampled mixing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from drivekd.distill.rows import mixing_matrix, sample_mixing
from drivekd.sample import CAPABILITIES, Sample

pytestmark = pytest.mark.numerics

DRAWS = 6000


def make_samples(count: int) -> list[Sample]:
    return [Sample(f"record {i}", CAPABILITIES[i % 3], f"question {i}", "a", (Path("x.png"),)) for i in range(count)]


def test_routed_is_one_hot() -> None:
    rows = sample_mixing("routed", make_samples(6), seed=0, step=0)
    assert torch.equal(rows, torch.eye(3).repeat(2, 1))


def test_released_is_the_released_matrix() -> None:
    """docs/method.md, "Losses and weights": .8 on the diagonal, .1 beside it, rows sum to 1."""
    matrix = mixing_matrix("released")
    assert torch.equal(matrix, torch.tensor([[0.8, 0.1, 0.1], [0.1, 0.8, 0.1], [0.1, 0.1, 0.8]]))
    assert torch.equal(sample_mixing("released", make_samples(6), seed=3, step=9), matrix.repeat(2, 1))


def mean_by_capability(rows: Tensor) -> Tensor:
    return torch.stack([rows[index::3].mean(0) for index in range(3)])


@pytest.mark.parametrize("over", ["samples", "steps"])
def test_sampled_is_released_in_expectation(over: str) -> None:
    """2,000 draws a row: the standard error of a share of .8 is .009, and four of them are allowed."""
    if over == "samples":
        rows = sample_mixing("sampled", make_samples(DRAWS), seed=0, step=0)
    else:
        rows = torch.cat([sample_mixing("sampled", make_samples(3), seed=0, step=step) for step in range(DRAWS // 3)])
    assert bool(((rows == 0) | (rows == 1)).all())
    assert torch.equal(rows.sum(1), torch.ones(len(rows)))
    torch.testing.assert_close(mean_by_capability(rows), mixing_matrix("released"), rtol=0, atol=0.036)


@given(order=st.permutations(range(12)), step=st.integers(0, 50), seed=st.integers(0, 5))
def test_a_draw_is_of_seed_step_and_words_alone(order: list[int], step: int, seed: int) -> None:
    """Neither batch, place, file nor folder matter: packed, unpacked, distributed and moved runs draw the same teachers."""
    samples = make_samples(12)
    elsewhere: dict[str, Any] = {"source": "another file", "images": (Path("moved") / "x.png",)}
    whole = sample_mixing("sampled", samples, seed, step)
    turned = sample_mixing("sampled", [replace(samples[i], **elsewhere) for i in order], seed, step)
    assert torch.equal(turned, whole[order])
    assert torch.equal(sample_mixing("sampled", samples[:5], seed, step), whole[:5])


@pytest.mark.parametrize("change", ["seed", "step", "question", "answer", "images"])
def test_each_part_of_the_key_changes_the_draws(change: str) -> None:
    samples = make_samples(300)
    key = {"seed": 0, "step": 0}
    before = sample_mixing("sampled", samples, **key)
    if change in key:
        after = sample_mixing("sampled", samples, **{**key, change: 1})
    else:
        value = (Path("y.png"),) if change == "images" else "other"
        after = sample_mixing("sampled", [replace(sample, **{change: value}) for sample in samples], **key)
    moved = int((before != after).any(1).sum())
    assert 50 < moved < 150  # two draws differ with probability 1 - .8² - .1² - .1² = .34


def test_torchs_generator_is_left_alone() -> None:
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    sample_mixing("sampled", make_samples(3), seed=0, step=0)
    assert torch.equal(torch.rand(3), expected)
