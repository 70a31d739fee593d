"""Packing: nothing lost, nothing twice, one frame a pack, never too long."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from drivekd.data.packs import Pack, frame_packs, single_packs
from drivekd.sample import CAPABILITIES, Sample

PREFIX = 10  # tokens before the first question
MAX_TOKENS = 40


def num_tokens(sample: Sample) -> tuple[int, int]:
    return PREFIX * len(sample.images), len(sample.question)


def length_of(pack: Pack) -> int:
    return num_tokens(pack[0])[0] + sum(num_tokens(sample)[1] for sample in pack)


@st.composite
def sample_lists(draw: st.DrawFn) -> list[Sample]:
    """Questions of up to 50 tokens about four frames, two of which differ in the order of their images alone; some twice."""
    a, b = Path("a.png"), Path("b.png")
    drawn = draw(st.lists(st.tuples(st.sampled_from([(a,), (b,), (a, b), (b, a)]), st.integers(1, 50)), max_size=40))
    return [Sample(f"record {i % 35}", CAPABILITIES[i % 3], "q" * size, None, frame) for i, (frame, size) in enumerate(drawn)]


@given(samples=sample_lists(), seed=st.integers(0, 3))
def test_packs_hold_every_sample_once(samples: list[Sample], seed: int) -> None:
    for packs in (frame_packs(samples, num_tokens, MAX_TOKENS, seed), single_packs(samples)):
        assert sorted(map(repr, (sample for pack in packs for sample in pack))) == sorted(map(repr, samples))
        assert all(packs)


@given(samples=sample_lists(), seed=st.integers(0, 3))
def test_a_pack_is_of_one_frame_and_never_too_long(samples: list[Sample], seed: int) -> None:
    for pack in frame_packs(samples, num_tokens, MAX_TOKENS, seed):
        assert len({sample.images for sample in pack}) == 1
        assert len(pack) == 1 or length_of(pack) <= MAX_TOKENS


@given(samples=sample_lists(), seed=st.integers(0, 3))
def test_a_pack_ends_only_where_the_next_question_would_not_fit(samples: list[Sample], seed: int) -> None:
    packs = frame_packs(samples, num_tokens, MAX_TOKENS, seed)
    for pack, following in pairwise(packs):
        if pack[0].images == following[0].images:
            assert length_of(pack) + num_tokens(following[0])[1] > MAX_TOKENS


@given(samples=sample_lists(), seed=st.integers(0, 3))
def test_packing_is_a_function_of_the_seed(samples: list[Sample], seed: int) -> None:
    assert frame_packs(samples, num_tokens, MAX_TOKENS, seed) == frame_packs(samples, num_tokens, MAX_TOKENS, seed)


def test_the_packs_of_a_long_frame_are_mixed() -> None:
    """In a file's order each pack would hold one capability alone: its teachers then see blocks of one kind."""
    samples = [Sample(f"record {i}", CAPABILITIES[i // 10], "q" * 5, "a", (Path("a.png"),)) for i in range(30)]
    packs = frame_packs(samples, num_tokens, MAX_TOKENS, seed=0)
    assert [len(pack) for pack in packs] == [6] * 5
    assert all(len({sample.capability for sample in pack}) > 1 for pack in packs)
    assert packs != frame_packs(samples, num_tokens, MAX_TOKENS, seed=1)


def test_without_packing_every_sample_is_alone() -> None:
    samples = [Sample(f"record {i}", "planning", "q", "a", (Path("a.png"),)) for i in range(3)]
    assert single_packs(samples) == [(sample,) for sample in samples]
