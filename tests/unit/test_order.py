"""The order of samples is a pure function of seed, stream and position."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drivekd.data.order import SampleStream, micro_batches
from drivekd.data.sample import CAPABILITIES, Sample


def make_samples(count: int) -> list[Sample]:
    return [Sample(f"record {i}", CAPABILITIES[i * 7 % 3], "q", "a", (Path("x.png"),)) for i in range(count)]


sizes = st.integers(1, 13)


@given(count=sizes, seed=st.integers(0, 5), cuts=st.lists(st.integers(0, 9), max_size=6))
def test_any_way_of_cutting_the_stream_gives_the_same_stream(count: int, seed: int, cuts: list[int]) -> None:
    samples = make_samples(count)
    pieces, start = [], 0
    for length in cuts:
        pieces += SampleStream(samples, seed=seed, stream=0).slice(start, length)  # a fresh one: nothing is remembered
        start += length
    assert pieces == SampleStream(samples, seed=seed, stream=0).slice(0, start)


@given(count=sizes, seed=st.integers(0, 5), epoch=st.integers(0, 4))
def test_every_epoch_shows_every_sample_once(count: int, seed: int, epoch: int) -> None:
    samples = make_samples(count)
    shown = SampleStream(samples, seed=seed, stream=1).slice(epoch * count, count)
    assert sorted(sample.source for sample in shown) == sorted(sample.source for sample in samples)


def test_seed_stream_and_epoch_each_change_the_order() -> None:
    samples = make_samples(12)
    orders = [
        SampleStream(samples, seed=seed, stream=stream).slice(epoch * 12, 12)
        for seed in (0, 1)
        for stream in (0, 1)
        for epoch in (0, 1)
    ]
    assert len({tuple(sample.source for sample in order) for order in orders}) == 8


@given(count=st.integers(0, 20), size=st.integers(1, 6))
def test_micro_batches_are_a_partition_by_capability(count: int, size: int) -> None:
    samples = make_samples(count)
    chunks = micro_batches(samples, size)
    assert sorted(s.source for chunk in chunks for s in chunk) == sorted(s.source for s in samples)
    assert all(len({sample.capability for sample in chunk}) == 1 for chunk in chunks)
    assert all(1 <= len(chunk) <= size for chunk in chunks)


@pytest.mark.parametrize("size", [1, 2, 5])
def test_there_are_no_more_micro_batches_than_needed(size: int) -> None:
    samples = make_samples(11)
    per_capability = [sum(sample.capability == name for sample in samples) for name in CAPABILITIES]
    assert len(micro_batches(samples, size)) == sum(-(-count // size) for count in per_capability)
