"""Memory of a session without an engine: the prefix's row and the branches' rows, which frames use again and again."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from arena_cases import memory
from hypothesis import given, settings
from hypothesis import strategies as st

from drivekd.errors import RunnerError
from drivekd.runtime.decoder.arena import Arena, ArenaCache
from drivekd.runtime.decoder.reserve import Reserve


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
