"""In-place K/V without an engine: a cache is a value, rows have lengths of their own, and only what is filled is copied."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drivekd.errors import RunnerError
from drivekd.runtime.arena import Arena, ArenaCache, new_arena
from drivekd.runtime.kv_cache import KvCache
from drivekd.runtime.logits_memory import NUM_BLOCKS, LogitsMemory
from drivekd.runtime.reserve import Reserve

HEADS, DIM, TENSORS = 2, 4, 4


def empty(batch: int, capacity: int) -> ArenaCache:
    arena = new_arena(TENSORS, (batch, HEADS, capacity, DIM), np.dtype(np.float32))
    for tensor in arena.tensors:
        tensor[:] = np.nan  # whoever copies more than is filled copies this
    return ArenaCache(arena, np.zeros(batch, np.int64), np.zeros(batch, np.int64))


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


# Memory of a session: the prefix's row and the branches' rows


def memory(rows: int, capacity: int, reserved: bool = False) -> Arena:
    arena = new_arena(TENSORS, (rows, HEADS, capacity, DIM), np.dtype(np.float32), reserved=reserved)
    for tensor in arena.tensors:
        tensor[:] = np.nan
    return arena


def told(cache: ArenaCache, values: list[int]) -> ArenaCache:
    """What an engine does when every row reads these: column j of all tensors and heads says values[j]."""
    cache = cache.writable(len(values))
    for tensor in cache.arena.tensors:
        for row, start in enumerate(cache.num_tokens):
            tensor[row, :, start : start + len(values)] = np.asarray(values, np.float32)[None, :, None]
    return cache.advanced(len(values), cache.next_positions + len(values))


def says(cache: ArenaCache) -> list[list[int]]:
    """The values of every row, when all tensors and heads agree on them."""
    rows = []
    for row in range(cache.batch):
        tensors = cache.kv(row)
        first = tensors[0][0, :, 0]
        assert all((tensor == first[None, :, None]).all() for tensor in tensors)
        rows.append([int(value) for value in first])
    return rows


class Moved:
    """Columns that arenas copy."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.columns = 0
        move = Arena.move

        def counted(arena: Arena, source: Arena, source_row: int, row: int, stop: int, start: int = 0) -> None:
            self.columns += max(0, stop - start)
            move(arena, source, source_row, row, stop, start)

        monkeypatch.setattr(Arena, "move", counted)

    def by(self, call: Callable[[], ArenaCache]) -> int:
        before = self.columns
        call()
        return self.columns - before


frame = st.tuples(
    st.integers(0, 12),  # columns of the prefix that stay, when there are so many
    st.integers(0, 8),  # new ones
    st.integers(1, 4),  # branches, of which 3 are reserved
    st.lists(st.integers(1, 3), min_size=4, max_size=4),  # columns that each reads
    st.sets(st.integers(0, 3), min_size=1),  # branches that go on
    st.sampled_from([(0, 0), (2, 20), (3, 30)]),  # what is reserved before it
)


@settings(deadline=None, max_examples=300)
@given(st.lists(frame, min_size=1, max_size=8))
def test_frames_in_reserved_memory_are_as_in_memory_of_their_own(
    frames: list[tuple[int, int, int, list[int], set[int], tuple[int, int]]],
) -> None:
    """Whatever stays of the prefix, however branches were left: all columns are what their frame read."""
    reserve, value = Reserve(memory), 0
    prefix, expected = reserve.empty_prefix(0), list[int]()
    for stay, new, num_rows, reads, going, (rows, capacity) in frames:
        if rows:
            reserve.hold(rows, capacity)
        stay = min(stay, len(expected))
        prefix = prefix.truncated(stay, 100 + stay, room=new)
        assert prefix.next_positions.tolist() == [100 + stay]
        expected = expected[:stay] + [value := value + 1 for _ in range(new)]
        if new:
            prefix = told(prefix, expected[stay:])
        assert says(prefix) == [expected]
        branches = prefix.select([0] * num_rows, room=8)
        assert says(branches) == [expected] * num_rows
        parts = [told(branches.row(row), [-10 * row - 1] * count) for row, count in zip(range(num_rows), reads, strict=False)]
        branches = branches.joined(parts)
        answers = [expected + [-10 * row - 1] * count for row, count in zip(range(num_rows), reads, strict=False)]
        assert says(branches) == answers
        left = sorted(row for row in going if row < num_rows) or [num_rows - 1]
        branches = told(branches.compact(left), [7])
        assert says(branches) == [[*answers[row], 7] for row in left]
        assert says(prefix) == [expected], "a branch wrote into the prefix"


def session_memory(prefix: list[int], rows: int = 3, capacity: int = 20) -> tuple[Reserve, ArenaCache]:
    reserve = Reserve(memory)
    reserve.hold(rows, capacity)
    return reserve, told(reserve.empty_prefix(len(prefix)), prefix)


def test_only_what_changed_is_copied_again(monkeypatch: pytest.MonkeyPatch) -> None:
    _, prefix = session_memory(list(range(10)))
    moved = Moved(monkeypatch)
    assert moved.by(lambda: prefix.select([0] * 3, room=5)) == 3 * 10
    assert moved.by(lambda: prefix.select([0] * 3, room=5)) == 0, "nothing has changed"
    changed = told(prefix.truncated(6, 6, room=4), [20, 21, 22, 23])
    assert moved.by(lambda: changed.select([0] * 3, room=5)) == 3 * 4
    shorter = told(changed.truncated(4, 4), [30])
    assert moved.by(lambda: shorter.select([0], room=5)) == 1
    assert moved.by(lambda: shorter.select([0] * 3, room=5)) == 2, "the rows that the last frame did not use"
    told(shorter.select([0] * 3, room=5), [50])
    longer = told(shorter, [40])  # a prefix that goes on without a cut
    assert moved.by(lambda: longer.select([0] * 3, room=5)) == 3
    assert says(longer.select([0] * 3, room=5)) == [[0, 1, 2, 3, 30, 40]] * 3


def test_a_branch_that_ends_moves_no_prefix(monkeypatch: pytest.MonkeyPatch) -> None:
    _, prefix = session_memory(list(range(10)))
    branches = told(prefix.select([0] * 3, room=5), [50, 51])
    assert Moved(monkeypatch).by(lambda: branches.compact([1, 2])) == 2 * 2


def test_rows_are_lent_again_when_nobody_holds_them() -> None:
    _, prefix = session_memory([1, 2, 3])
    first = prefix.select([0, 0], room=5)
    place = first.arena.tensors[0]
    second = prefix.select([0, 0], room=5)
    assert not np.shares_memory(second.arena.tensors[0], place), "somebody holds the first"
    first = told(first, [4]).compact([1]).row(0)  # what went on from it holds it as well
    assert not np.shares_memory(prefix.select([0], room=5).arena.tensors[0], place)
    assert says(first) == [[1, 2, 3, 4]]
    del first
    assert np.shares_memory(prefix.select([0, 0, 0], room=5).arena.tensors[0], place)


def test_what_was_not_reserved_is_a_copy() -> None:
    _, prefix = session_memory([1, 2, 3], rows=2, capacity=8)
    for rows, room in ((3, 1), (2, 6)):
        copies = prefix.select([0] * rows, room=room)
        assert says(copies) == [[1, 2, 3]] * rows
        assert copies.arena.capacity == 3 + room
        assert not copies.arena.reserved
    assert prefix.select([0] * 2, room=5).arena.reserved


def test_reserved_rows_refuse_to_overflow() -> None:
    """Before the engine writes, with the numbers."""
    _, prefix = session_memory([1, 2, 3], capacity=8)
    branches = told(prefix.select([0, 0], room=2), [4, 5, 6])
    with pytest.raises(RunnerError, match="holds 8 tokens a branch; 6 are read and 3 more make 9"):
        branches.writable(3)
    assert says(told(branches, [7, 8])) == [[1, 2, 3, 4, 5, 6, 7, 8]] * 2


def test_a_spent_prefix_is_refused() -> None:
    """Its columns are another frame's now: silence here would be a stale answer."""
    reserve, prefix = session_memory([1, 2, 3])
    shorter = prefix.truncated(2, 2)
    uses: list[Callable[[ArenaCache], object]] = [
        lambda cache: cache.kv(0),
        lambda cache: cache.select([0]),
        lambda cache: cache.writable(1),
        lambda cache: cache.compact([0]),
        lambda cache: cache.truncated(1, 1),
    ]
    for use in uses:
        with pytest.raises(RunnerError, match="spent"):
            use(prefix)
    assert says(shorter) == [[1, 2]]
    reserve.empty_prefix(5)
    with pytest.raises(RunnerError, match="spent"):
        shorter.kv(0)


def test_a_prefix_that_moves_to_larger_memory_is_spent_where_it_was() -> None:
    reserve, prefix = session_memory([1, 2, 3], capacity=4)
    larger = prefix.truncated(3, 3, room=10)
    assert not np.shares_memory(larger.arena.tensors[0], prefix.arena.tensors[0])
    assert says(told(larger, [4, 5])) == [[1, 2, 3, 4, 5]]
    with pytest.raises(RunnerError, match="spent"):
        prefix.select([0])
    other = reserve.empty_prefix(40)
    with pytest.raises(RunnerError, match="spent"):
        larger.kv(0)
    assert other.arena.capacity == 40


def test_holding_less_or_as_much_changes_nothing() -> None:
    reserve, prefix = session_memory([1, 2, 3])
    place = prefix.select([0] * 3).arena.tensors[0]
    reserve.hold(3, 20)
    reserve.hold(1, 30)
    assert (reserve.rows, reserve.capacity) == (3, 30)
    assert not np.shares_memory(prefix.select([0] * 3).arena.tensors[0], place)
    assert says(prefix.select([0] * 3)) == [[1, 2, 3]] * 3, "new memory is empty at first"


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


# Memory of logits


def test_logits_that_nobody_holds_are_written_over() -> None:
    lending = LogitsMemory(5)
    first, engine = lending.lend(3)
    assert first.shape == engine.shape == (3, 5)
    assert np.shares_memory(first, engine)
    places = {first.ctypes.data}
    for _ in range(6):  # a decode loop: the last logits are held while the next are made
        second, _ = lending.lend(2)
        assert not np.shares_memory(first, second)
        places.add(second.ctypes.data)
        first = second
    assert len(places) == NUM_BLOCKS


@pytest.mark.parametrize("hold", [lambda logits: logits, lambda logits: logits[1], lambda logits: logits.T[2:][::2]])
def test_logits_that_somebody_holds_stay(hold: Callable[[np.ndarray], np.ndarray]) -> None:
    lending, held = LogitsMemory(5), []
    for number in range(6):
        lent, engine = lending.lend(3)
        engine[:] = number
        held.append(hold(lent))
    assert [float(array.flat[0]) for array in held] == list(range(6))


def test_more_rows_than_ever_get_larger_blocks() -> None:
    lending = LogitsMemory(4)
    small, _ = lending.lend(1)
    small[:] = 1
    large, engine = lending.lend(8)
    engine[:] = 2
    assert (small == 1).all()
    assert large.shape == (8, 4)
