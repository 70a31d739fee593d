"""Which token comes next: its law, its seed, and what stops it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from drivekd.errors import RunnerError, UsageError
from drivekd.runtime.answers.ask import GREEDY, Sampling
from drivekd.runtime.session.sampling import Sampler, greedy, top2_margin

NAMES = ("perception", "reasoning", "planning")


def random_logits(seed: int, rows: int = 3, vocab_size: int = 11, scale: float = 2.0) -> NDArray[np.float32]:
    return (np.random.default_rng(seed).normal(size=(rows, vocab_size)) * scale).astype(np.float32)


def log_softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    wide = logits.astype(np.float64)
    wide -= wide.max(axis=1, keepdims=True)
    return np.asarray(wide - np.log(np.exp(wide).sum(axis=1, keepdims=True)))


class Only:
    """Allows some tokens."""

    def __init__(self, *tokens: int) -> None:
        self._tokens = list(tokens)

    def allows(self, token: int) -> bool:
        return token in self._tokens

    def mask(self, logits: NDArray[np.float32]) -> None:
        kept = logits[self._tokens]
        logits[:] = -np.inf
        logits[self._tokens] = kept


@pytest.mark.parametrize(("vocab_size", "scale"), [(11, 30.0), (151_674, 3.0)])
def test_greedy_is_argmax_with_its_log_probability(vocab_size: int, scale: float) -> None:
    logits = random_logits(0, vocab_size=vocab_size, scale=scale)
    tokens, logprobs = greedy(logits)
    assert tokens.tolist() == logits.argmax(axis=1).tolist()
    np.testing.assert_allclose(logprobs, log_softmax(logits).max(axis=1), atol=1e-6)  # exp in float32
    assert logprobs.dtype == np.float64
    assert np.isfinite(greedy(logits * 1e30)[1]).all(), "no overflow"


@pytest.mark.parametrize("sampling", [GREEDY, Sampling(temperature=0.7, top_p=0.9)])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_logits_that_are_not_finite_stop_the_answer(bad: float, sampling: Sampling) -> None:
    logits = np.zeros((2, 5), np.float32)
    logits[1, 3] = bad
    with pytest.raises(RunnerError, match="not finite"):
        Sampler(sampling, NAMES).choose(logits)


def test_margin_is_the_distance_of_the_best_two() -> None:
    assert top2_margin(np.asarray([[1, 5, 3], [2, 2, 0]], np.float32)).tolist() == [2, 0]


@pytest.mark.parametrize("sampling", [GREEDY, Sampling(temperature=1.5)])
def test_a_mask_decides_and_the_log_probability_is_the_models_own(sampling: Sampling) -> None:
    logits = random_logits(1)
    expected = log_softmax(logits)
    tokens, logprobs = Sampler(sampling, NAMES).choose(logits, masks=[Only(4), None, Only(2, 3)])
    assert tokens[0] == 4
    assert tokens[2] in (2, 3)
    np.testing.assert_allclose(logprobs, expected[range(3), tokens], atol=1e-6)  # exp in float32


def test_the_likeliest_token_is_taken_without_a_mask_where_it_is_allowed() -> None:
    logits = random_logits(1)
    before, likeliest = logits.copy(), logits.argmax(axis=1)
    tokens, _ = Sampler().choose(logits, masks=[Only(int(likeliest[0]), 3), Only(int(likeliest[1])), None])
    assert tokens.tolist() == likeliest.tolist()
    assert np.array_equal(logits, before)


@pytest.mark.parametrize("sampling", [GREEDY, Sampling(temperature=1.0)])
def test_a_mask_that_allows_nothing_is_an_error(sampling: Sampling) -> None:
    with pytest.raises(RunnerError, match="allows no token"):
        Sampler(sampling, NAMES).choose(random_logits(2), masks=[None, Only(), None])


def test_every_row_has_its_mask() -> None:
    with pytest.raises(ValueError, match="shorter"):
        Sampler().choose(random_logits(2), masks=[None])


def test_without_a_mask_the_logits_are_left_alone() -> None:
    for sampling in (GREEDY, Sampling(temperature=1.0, top_p=0.5)):
        logits = random_logits(3)
        before = logits.copy()
        Sampler(sampling, NAMES).choose(logits)
        assert np.array_equal(logits, before)


def drawn(sampling: Sampling, logits: NDArray[np.float32], times: int, branch: int = 0) -> NDArray[np.int64]:
    """The same row of logits [1, V] again and again."""
    sampler = Sampler(sampling, NAMES)
    return np.asarray([sampler.choose(logits, branches=[branch])[0][0] for _ in range(times)])


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_tokens_are_drawn_from_the_softmax(temperature: float) -> None:
    logits = random_logits(4, rows=1, vocab_size=6)
    times = 4000
    found = np.bincount(drawn(Sampling(temperature, seed=1), logits, times), minlength=6) / times
    expected = np.exp(log_softmax(logits / np.float32(temperature)))[0]
    # 4 standard deviations of a share of `times` draws
    assert (np.abs(found - expected) <= 4 * np.sqrt(expected * (1 - expected) / times) + 1e-9).all()


def slow_nucleus(shares: NDArray[np.float64], top_p: float) -> set[int]:
    """The likeliest tokens, one by one, until they hold top_p."""
    kept: set[int] = set()
    for token in np.argsort(-shares, kind="stable"):
        kept.add(int(token))
        if shares[sorted(kept)].sum() >= top_p:
            break
    return kept


@given(seed=st.integers(0, 200), top_p=st.floats(0.05, 0.95))
def test_only_the_nucleus_is_drawn(seed: int, top_p: float) -> None:
    logits = random_logits(seed, rows=1, vocab_size=9)
    nucleus = slow_nucleus(np.exp(log_softmax(logits))[0], top_p)
    assert set(drawn(Sampling(1.0, top_p, seed), logits, 40).tolist()) <= nucleus


def test_all_of_the_nucleus_is_drawn() -> None:
    logits = np.log(np.asarray([[0.05, 0.4, 0.15, 0.3, 0.1]], np.float32))
    assert set(drawn(Sampling(1.0, 0.8), logits, 400).tolist()) == {1, 2, 3}
    assert set(drawn(Sampling(1.0, 1.0), logits, 400).tolist()) == {0, 1, 2, 3, 4}
    assert set(drawn(Sampling(1.0, 0.01), logits, 50).tolist()) == {1}


def test_a_low_temperature_is_greedy() -> None:
    for seed in range(20):
        logits = random_logits(seed)
        found, _ = Sampler(Sampling(temperature=1e-6), NAMES).choose(logits)
        assert found.tolist() == greedy(logits)[0].tolist()


def test_a_seed_repeats_and_another_does_not() -> None:
    logits = random_logits(5, rows=1, vocab_size=100)
    first, again, other = (drawn(Sampling(1.0, seed=seed), logits, 20).tolist() for seed in (3, 3, 4))
    assert first == again != other


def test_an_answer_does_not_depend_on_its_batch_mates() -> None:
    """Alone, with others, or after another has left the batch."""
    settings, logits = Sampling(1.0, seed=7), random_logits(6, vocab_size=100)
    together, alone, later = Sampler(settings, NAMES), Sampler(settings, ("planning",)), Sampler(settings, NAMES)
    rows: list[list[int]] = [[], [], []]
    for step in range(12):
        rows[0].append(int(together.choose(logits)[0][2]))
        rows[1].append(int(alone.choose(logits[2:])[0][0]))
        left = [0, 1, 2] if step < 5 else [0, 2]
        rows[2].append(int(later.choose(logits[left], branches=left)[0][-1]))
    assert rows[0] == rows[1] == rows[2]
    streams = [drawn(settings, logits[:1], 12, branch).tolist() for branch in range(3)]
    assert streams[0] != streams[1] != streams[2]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": -0.1}, "temperature is -0.1"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"top_p": 0.0}, r"top_p is 0\.0; expected above 0"),
        ({"top_p": 1.1}, "top_p is 1.1"),
        ({"seed": -1}, "seed is -1"),
    ],
)
def test_settings_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Sampling(**options)
