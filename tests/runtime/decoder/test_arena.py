"""In-place K/V without an engine: a cache is a value, rows have lengths of their own, and only what is filled is copied."""

from __future__ import annotations

import numpy as np
import pytest
from arena_cases import DIM, HEADS, memory
from hypothesis import given, settings
from hypothesis import strategies as st

from drivekd.errors import RunnerError
from drivekd.runtime.decoder.arena import Arena, ArenaCache, new_arena
from drivekd.runtime.decoder.concat import KvCache


def empty(batch: int, capacity: int) -> ArenaCache:
    return ArenaCache(memory(batch, capacity), np.zeros(batch, np.int64), np.zeros(batch, np.int64))


def written(cache: ArenaCache, count: int, seed: int) -> ArenaCache:
    """What an engine does: `count` columns behind each row's own."""
    cache = cache.writable(count)
    rng = np.random.default_rng(seed)
    for tensor in cache.arena.tensors:
        for row, start in enumerate(cache.num_tokens):
            assert np.isnan(tensor[row, :, start:]).all() or (tensor[row, :, start:] == 0).all()
            tensor[row, :, start : start + count] = rng.normal(size=(HEADS, count, DIM))
    return cache.advanced(count, cache.next_positions + count)


def contents(cache: ArenaCache) -> list[list[np.ndarray]]:
    return [list(cache.kv(row)) for row in range(cache.batch)]


def same(found: list[list[np.ndarray]], expected: list[list[np.ndarray]]) -> bool:
    return len(found) == len(expected) and all(
        np.array_equal(a, b) for left, right in zip(found, expected, strict=True) for a, b in zip(left, right, strict=True)
    )


def ragged(lengths: list[int], capacity: int) -> ArenaCache:
    """Rows of different lengths in one arena."""
    cache = empty(len(lengths), capacity)
    for row, length in enumerate(lengths):
        one = ArenaCache(cache.arena.rows(row, row + 1), np.zeros(1, np.int64), np.zeros(1, np.int64))
        if length:
            written(one, length, row)
    return ArenaCache(cache.arena, np.asarray(lengths), np.asarray(lengths) + 100)


lengths = st.lists(st.integers(0, 9), min_size=1, max_size=4)


@settings(deadline=None)
@given(lengths, st.data())
def test_selected_rows_are_copies_of_what_is_filled(sizes: list[int], data: st.DataObject) -> None:
    cache = ragged(sizes, 10)
    before = contents(cache)
    rows = data.draw(st.lists(st.integers(0, len(sizes) - 1), min_size=1, max_size=5))
    room = data.draw(st.integers(0, 5))
    chosen = cache.select(rows, room=room)
    assert same(contents(chosen), [before[row] for row in rows])
    assert chosen.num_tokens.tolist() == [sizes[row] for row in rows]
    assert chosen.next_positions.tolist() == [sizes[row] + 100 for row in rows]
    assert chosen.arena.capacity == max(sizes[row] for row in rows) + room
    assert not any(np.isnan(tensor).any() for tensor in chosen.arena.tensors), "more was copied than is filled"
    for tensor in chosen.arena.tensors:
        tensor[:] = 7
    assert same(contents(cache), before), "the copy shares memory"


@settings(deadline=None)
@given(lengths, st.data())
def test_compaction_keeps_the_rows_that_go_on(sizes: list[int], data: st.DataObject) -> None:
    cache = ragged(sizes, 10)
    before = contents(cache)
    rows = sorted(data.draw(st.sets(st.integers(0, len(sizes) - 1), min_size=1)))
    compacted = cache.compact(rows)
    assert same(contents(compacted), [before[row] for row in rows])
    assert compacted.num_tokens.tolist() == [sizes[row] for row in rows]
    assert compacted.next_positions.tolist() == [sizes[row] + 100 for row in rows]
    assert np.shares_memory(compacted.arena.tensors[0], cache.arena.tensors[0]), "in place"
    assert all(tensor.flags.c_contiguous for tensor in compacted.arena.tensors), "an engine is bound to it"
    longer = compacted.writable(1)
    assert same(contents(longer), [before[row] for row in rows])


def test_a_full_cache_grows_by_doubling_and_no_sooner() -> None:
    cache = written(empty(2, 6), 4, 0)
    assert cache.writable(2) is cache
    before = contents(cache)
    grown = cache.writable(3)
    assert grown.arena.capacity == 12
    assert same(contents(grown), before)
    assert cache.writable(50).arena.capacity == 54, "at least what is needed"
    assert empty(1, 0).writable(5).arena.capacity == 5


def test_a_cache_may_be_gone_on_from_twice() -> None:
    """The second time it has lost the memory to the first."""
    start = written(empty(1, 20), 3, 0)
    before = contents(start)
    first = written(start, 2, 1)
    kept = contents(first)
    second = written(start, 4, 2)
    assert same(contents(first), kept), "the second run wrote over the first"
    assert same(contents(start), before)
    assert not np.shares_memory(first.arena.tensors[0], second.arena.tensors[0])
    assert second.num_tokens.tolist() == [7]
    assert first.writable(1) is first, "the first still owns its memory"


def test_an_older_cache_is_compacted_into_a_copy() -> None:
    start = written(empty(2, 20), 3, 0)
    newer = written(start, 2, 1)
    kept = contents(newer)
    old = start.compact([1])
    assert same(contents(newer), kept)
    assert old.num_tokens.tolist() == [3]


def test_rows_are_moved_in_ascending_order_only() -> None:
    with pytest.raises(AssertionError, match="ascending"):
        ragged([3, 4], 5).compact([1, 0])


def test_rows_of_an_arena_are_its_memory() -> None:
    arena = new_arena(2, (3, HEADS, 5, DIM), np.dtype(np.float16))
    row = arena.rows(1, 2)
    assert isinstance(row, Arena)
    row.tensors[0][:] = 3
    row.written[:] = 4
    assert (arena.tensors[0][1] == 3).all()
    assert arena.written.tolist() == [0, 4, 0]
    assert arena.capacity == row.capacity == 5
    assert (arena.batch, row.batch) == (3, 1)
    assert row.tensors[0].dtype == np.float16


def test_both_caches_give_the_same_rows() -> None:
    """Left padding in one, lengths in the other."""
    arena = ragged([3, 5], 8)
    tensors = []
    for tensor in arena.arena.tensors:
        padded = np.zeros((2, HEADS, 5, DIM), np.float32)
        padded[0, :, 2:], padded[1] = tensor[0, :, :3], tensor[1, :, :5]
        tensors.append(padded)
    mask = np.asarray([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])
    padded_cache = KvCache(tuple(tensors), mask, arena.next_positions)
    assert padded_cache.num_tokens.tolist() == arena.num_tokens.tolist()
    assert same([list(padded_cache.kv(row)) for row in range(2)], contents(arena))
    assert same([list(padded_cache.compact([1]).kv(0))], contents(arena.compact([1])))


def test_memory_that_is_not_there_is_named() -> None:
    with pytest.raises(RunnerError, match=r"no memory for the K/V of 3 rows of 1073741824 tokens \([\d,]+ MB\)"):
        new_arena(2, (3, 8, 1 << 30, 1 << 20), np.dtype(np.float32))


def test_both_caches_truncate_alike() -> None:
    cache = written(empty(1, 8), 5, 0)
    grown = KvCache(tuple(tensor[:, :, :5].copy() for tensor in cache.arena.tensors), np.ones((1, 5), np.int64), np.asarray([5]))
    for num_tokens in (5, 3, 0):
        cache, grown = cache.truncated(num_tokens, num_tokens), grown.truncated(num_tokens, num_tokens)
        assert same([list(grown.kv(0))], contents(cache))
        assert grown.num_tokens.tolist() == cache.num_tokens.tolist() == [num_tokens]
        assert grown.next_positions.tolist() == cache.next_positions.tolist() == [num_tokens]
