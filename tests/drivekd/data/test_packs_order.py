"""The order of packs is a pure function of seed, stream and position."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drivekd.data.packs import Pack, PackStream, micro_batches, single_packs
from drivekd.sample import CAPABILITIES, Capability, Sample


def make_packs(count: int) -> list[Pack]:
    return single_packs([Sample(f"record {i}", CAPABILITIES[i * 7 % 3], "q", "a", (Path("x.png"),)) for i in range(count)])


def make_frames(kinds: list[int]) -> list[Pack]:
    """One pack a number; its bits say which capabilities ask."""

    def asked(kind: int) -> list[Capability]:
        return [name for bit, name in enumerate(CAPABILITIES) if kind >> bit & 1]

    return [
        tuple(Sample(f"record {i}", name, "q" * i, "a", (Path("x.png"),)) for name in asked(kind)) for i, kind in enumerate(kinds)
    ]


def sources(packs: list[Pack]) -> list[str]:
    return sorted(sample.source for pack in packs for sample in pack)


sizes = st.integers(1, 13)


@given(count=sizes, seed=st.integers(0, 5), cuts=st.lists(st.integers(0, 9), max_size=6))
def test_any_way_of_cutting_the_stream_gives_the_same_stream(count: int, seed: int, cuts: list[int]) -> None:
    packs = make_packs(count)
    pieces, start = [], 0
    for length in cuts:
        pieces += PackStream(packs, seed=seed, stream=0).slice(start, length)  # a fresh one: nothing is remembered
        start += length
    assert pieces == PackStream(packs, seed=seed, stream=0).slice(0, start)


@given(count=sizes, seed=st.integers(0, 5), epoch=st.integers(0, 4))
def test_every_epoch_shows_every_pack_once(count: int, seed: int, epoch: int) -> None:
    packs = make_packs(count)
    shown = PackStream(packs, seed=seed, stream=1).slice(epoch * count, count)
    assert sources(shown) == sources(packs)


def test_seed_stream_and_epoch_each_change_the_order() -> None:
    packs = make_packs(12)
    orders = [
        PackStream(packs, seed=seed, stream=stream).slice(epoch * 12, 12)
        for seed in (0, 1)
        for stream in (0, 1)
        for epoch in (0, 1)
    ]
    assert len({tuple(pack[0].source for pack in order) for order in orders}) == 8


frames = st.lists(st.integers(1, 7), max_size=20)


@given(kinds=frames, size=st.integers(1, 6))
def test_micro_batches_are_a_partition_by_capabilities(kinds: list[int], size: int) -> None:
    """Each holds packs that ask for the same capabilities: only what is mixed pays for several teachers."""
    packs = make_frames(kinds)
    chunks = micro_batches(packs, size)
    assert sources([pack for chunk in chunks for pack in chunk]) == sources(packs)
    assert all(len({frozenset(sample.capability for sample in pack) for pack in chunk}) == 1 for chunk in chunks)
    assert all(1 <= len(chunk) <= size for chunk in chunks)


@given(kinds=frames, size=st.integers(1, 6))
def test_packs_of_about_one_length_share_a_micro_batch(kinds: list[int], size: int) -> None:
    """Padding is what the longest pack costs the others: within a kind no micro-batch overlaps the next in length."""

    def num_tokens(pack: Pack) -> int:
        return len(pack[0].question)

    packs = make_frames(kinds)
    chunks = micro_batches(packs[::-1], size, num_tokens)
    by_kind: dict[tuple[str, ...], list[int]] = {}
    for chunk in chunks:
        by_kind.setdefault(tuple(sample.capability for sample in chunk[0]), []).extend(map(num_tokens, chunk))
    assert all(lengths == sorted(lengths) for lengths in by_kind.values())


@given(kinds=frames, size=st.integers(1, 6))
def test_the_order_of_packs_does_not_depend_on_python(kinds: list[int], size: int) -> None:
    """Sets have an order that changes from run to run; resuming must repeat the micro-batches."""
    packs = make_frames(kinds)
    first = [sorted({sample.capability for sample in chunk[0]}) for chunk in micro_batches(packs, size)]
    assert first == sorted(first)


@pytest.mark.parametrize("size", [1, 2, 5])
def test_there_are_no_more_micro_batches_than_needed(size: int) -> None:
    packs = make_packs(11)
    per_capability = [sum(pack[0].capability == name for pack in packs) for name in CAPABILITIES]
    assert len(micro_batches(packs, size)) == sum(-(-count // size) for count in per_capability)
