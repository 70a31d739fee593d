"""K/V in buffers of fixed capacity that an engine fills in place: the cache of the dialect `gqa`.

B rows (one per branch), K key/value heads, C columns of capacity, head dim d. Rows may be filled to different lengths. What lies
behind a row's tokens is never read, neither by the engine nor by a copy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from drivekd.errors import RunnerError
from drivekd.runtime.engine.runner import Array


@dataclass(frozen=True, eq=False)
class Arena:
    """Memory for K/V. batch: B; capacity: C. tensors: in the order of `past_names`, each [B, K, C, d]. written: columns in use
    of each row, [B].

    reserved: it does not grow. turn [1]: how often its columns were given to something else.
    """

    tensors: tuple[Array, ...]
    written: NDArray[np.int64]
    reserved: bool = False
    turn: NDArray[np.int64] = field(default_factory=lambda: np.zeros(1, np.int64))
    _parts: dict[tuple[int, int], Arena] = field(default_factory=dict, repr=False)

    @property
    def batch(self) -> int:
        return int(self.written.shape[0])

    @property
    def capacity(self) -> int:
        return int(self.tensors[0].shape[2])

    def rows(self, start: int, stop: int) -> Arena:
        """Some rows of this arena: the same memory, and the same object at every call, since engines are bound to it."""
        if (start, stop) == (0, self.batch):
            return self
        if (start, stop) not in self._parts:
            tensors = tuple(tensor[start:stop] for tensor in self.tensors)
            self._parts[start, stop] = Arena(tensors, self.written[start:stop], self.reserved, self.turn)
        return self._parts[start, stop]

    def like(self, batch: int, capacity: int) -> Arena:
        """New memory of another size."""
        _, heads, _, dim = self.tensors[0].shape
        return new_arena(len(self.tensors), (batch, heads, capacity, dim), self.tensors[0].dtype)

    def spend(self, num_columns: int) -> None:
        """Keep the first columns of all rows for whoever comes next: every cache that exists is spent."""
        self.turn[0] += 1
        self.written[:] = num_columns

    def move(self, source: Arena, source_row: int, row: int, stop: int, start: int = 0) -> None:
        """Copy one row's columns from `start` on from `source`, which may be this arena; the row then has `stop` columns."""
        for target, tensor in zip(self.tensors, source.tensors, strict=True):
            target[row, :, start:stop] = tensor[source_row, :, start:stop]
        self.written[row] = stop


def new_arena(num_tensors: int, shape: tuple[int, int, int, int], dtype: np.dtype[Any], *, reserved: bool = False) -> Arena:
    """Unwritten memory, each tensor [B, K, C, d] = shape. Zeros: pages that nobody writes cost no memory.

    Raises RunnerError when there is not so much memory.
    """
    try:
        tensors = tuple(np.zeros(shape, dtype) for _ in range(num_tensors))
    except MemoryError as error:
        megabytes = num_tensors * int(np.prod(shape)) * dtype.itemsize / 1e6
        raise RunnerError(
            f"no memory for the K/V of {shape[0]} rows of {shape[2]} tokens ({megabytes:,.0f} MB); use fewer cameras, shorter "
            "questions or fewer new tokens, or free memory"
        ) from error
    return Arena(tensors, np.zeros(shape[0], np.int64), reserved)


class Home(Protocol):
    """What a session's prefix belongs to (reserve.py)."""

    def lend(self, prefix: ArenaCache, num_rows: int, num_columns: int) -> ArenaCache | None:
        """Rows with copies of the prefix and room for num_columns in all; None = there are none now."""
        ...

    def cut(self, num_columns: int) -> None:
        """The prefix keeps its first columns only."""
        ...

    def prefix_row(self, num_columns: int) -> Arena:
        """The prefix's row, wide enough."""
        ...


@dataclass(frozen=True, eq=False)
class ArenaCache:
    """A Cache of the first num_tokens [B] columns of an arena's rows.

    An older cache may share the arena with one that went on from it: nothing before its num_tokens changes any more.
    alike: leading columns that hold the same in all rows. turn: the arena's when this cache was made; another one = spent.
    home: of a session's prefix. loan: what keeps borrowed rows from being lent again.
    """

    arena: Arena
    num_tokens: NDArray[np.int64]
    next_positions: NDArray[np.int64]
    alike: int = 0
    turn: int = 0
    home: Home | None = None
    loan: object | None = None

    @property
    def batch(self) -> int:
        return self.arena.batch

    def select(self, rows: Sequence[int], *, room: int = 0) -> ArenaCache:
        needed = int(self.num_tokens[rows].max(initial=0)) + room
        lent = None if self.home is None else self.home.lend(self, len(rows), needed)
        return self._copy(rows, needed) if lent is None else lent

    def compact(self, rows: Sequence[int]) -> ArenaCache:
        assert list(rows) == sorted(set(rows)), "ascending: a row must not be written over before it has moved"
        if not self._newest():
            return self.select(rows)
        for row, source in enumerate(rows):
            if row != source:
                self.arena.move(self.arena, source, row, int(self.num_tokens[source]), self.alike)
        arena = self.arena.rows(0, len(rows))
        return replace(self, arena=arena, num_tokens=self.num_tokens[rows], next_positions=self.next_positions[rows])

    def truncated(self, num_tokens: int, next_position: int, *, room: int = 0) -> ArenaCache:
        assert self.batch == 1 and num_tokens <= self.num_tokens[0], "a prefix is one row, and does not grow by truncation"
        arena, needed = self.unspent_arena(), num_tokens + room
        if needed > arena.capacity:
            arena = self.arena.like(1, needed) if self.home is None else self.home.prefix_row(needed)
            arena.move(self.arena, 0, 0, num_tokens)
            self.arena.spend(0)  # or two prefixes would go on with one home
        arena.spend(num_tokens)
        if self.home is not None:
            self.home.cut(num_tokens)
        place, turn = np.asarray([next_position]), int(arena.turn[0])
        return replace(self, arena=arena, num_tokens=np.asarray([num_tokens]), next_positions=place, turn=turn)

    def kv(self, row: int) -> tuple[Array, ...]:
        return tuple(tensor[row, :, : self.num_tokens[row]].copy() for tensor in self.unspent_arena().tensors)

    def writable(self, num_new: int) -> ArenaCache:
        """This cache with room for num_new columns in every row: itself, or a copy when it is full or not the newest.

        Raises RunnerError when it is full and reserved.
        """
        capacity, num_read = self.arena.capacity, int(self.num_tokens.max())
        needed = num_read + num_new
        if needed <= capacity and self._newest():
            return self
        if needed > capacity and self.arena.reserved:
            raise RunnerError(
                f"the session's K/V memory holds {capacity} tokens a branch; {num_read} are read and {num_new} more make "
                f"{needed}. Reserve more, or ask with fewer cameras, a shorter question or fewer new tokens."
            )
        return self._copy(range(self.batch), capacity if needed <= capacity else max(2 * capacity, needed))

    def advanced(self, num_new: int, next_positions: NDArray[np.int64]) -> ArenaCache:
        """The cache behind num_new columns that the engine has just written into every row."""
        num_tokens = self.num_tokens + num_new
        self.arena.written[:] = num_tokens
        return replace(self, num_tokens=num_tokens, next_positions=next_positions)

    def row(self, index: int) -> ArenaCache:
        """One row, in the same memory."""
        place = slice(index, index + 1)
        arena = self.arena.rows(index, index + 1)
        return replace(self, arena=arena, num_tokens=self.num_tokens[place], next_positions=self.next_positions[place])

    def joined(self, rows: Sequence[ArenaCache]) -> ArenaCache:
        """This cache when each of its rows has been read on by itself."""
        num_tokens = np.concatenate([row.num_tokens for row in rows])
        return replace(self, num_tokens=num_tokens, next_positions=np.concatenate([row.next_positions for row in rows]))

    def unspent_arena(self) -> Arena:
        """The arena. Raises RunnerError when its columns were given to something else."""
        if self.turn != self.arena.turn[0]:
            raise RunnerError("this prefix is spent: its memory holds another frame now; read its frame again")
        return self.arena

    def _newest(self) -> bool:
        """Whether no other cache has gone on in this memory."""
        return bool((self.unspent_arena().written == self.num_tokens).all())

    def _copy(self, rows: Sequence[int], capacity: int) -> ArenaCache:
        arena = self.unspent_arena().like(len(rows), capacity)
        for row, source in enumerate(rows):
            arena.move(self.arena, source, row, int(self.num_tokens[source]))
        return ArenaCache(arena, self.num_tokens[rows], self.next_positions[rows])
