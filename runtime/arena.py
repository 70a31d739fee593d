"""K/V in buffers of fixed capacity that an engine fills in place: the cache of the dialect `gqa`.

B rows (one per branch), K key/value heads, C columns of capacity, head dim d. Rows may be filled to different lengths. What lies
behind a row's tokens is never read, neither by the engine nor by a copy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .runner import Array


@dataclass(frozen=True, eq=False)
class Arena:
    """Memory for K/V. tensors: in the order of `past_names`, each [B, K, C, d]. written: columns in use of each row, [B]."""

    tensors: tuple[Array, ...]
    written: NDArray[np.int64]

    @property
    def batch(self) -> int:
        return int(self.written.shape[0])

    @property
    def capacity(self) -> int:
        return int(self.tensors[0].shape[2])

    def rows(self, start: int, stop: int) -> Arena:
        """Some rows of this arena: the same memory."""
        return Arena(tuple(tensor[start:stop] for tensor in self.tensors), self.written[start:stop])

    def move(self, source: Arena, source_row: int, row: int, num_columns: int) -> None:
        """Copy one row's first columns from `source`, which may be this arena."""
        for target, tensor in zip(self.tensors, source.tensors, strict=True):
            target[row, :, :num_columns] = tensor[source_row, :, :num_columns]
        self.written[row] = num_columns


def new_arena(num_tensors: int, shape: tuple[int, int, int, int], dtype: np.dtype[Any]) -> Arena:
    """Unwritten memory, each tensor [B, K, C, d] = shape. Zeros: pages that nobody writes cost no memory."""
    return Arena(tuple(np.zeros(shape, dtype) for _ in range(num_tensors)), np.zeros(shape[0], np.int64))


@dataclass(frozen=True, eq=False)
class ArenaCache:
    """A Cache of the first num_tokens [B] columns of an arena's rows.

    An older cache may share the arena with one that went on from it: nothing before its num_tokens changes any more.
    """

    arena: Arena
    num_tokens: NDArray[np.int64]
    next_positions: NDArray[np.int64]

    @property
    def batch(self) -> int:
        return self.arena.batch

    def select(self, rows: Sequence[int], *, room: int = 0) -> ArenaCache:
        return self._copy(rows, int(self.num_tokens[rows].max(initial=0)) + room)

    def compact(self, rows: Sequence[int]) -> ArenaCache:
        assert list(rows) == sorted(set(rows)), "ascending: a row must not be written over before it has moved"
        if not self._newest():
            return self.select(rows)
        for row, source in enumerate(rows):
            if row != source:
                self.arena.move(self.arena, source, row, int(self.num_tokens[source]))
        return ArenaCache(self.arena.rows(0, len(rows)), self.num_tokens[rows], self.next_positions[rows])

    def kv(self, row: int) -> tuple[Array, ...]:
        return tuple(tensor[row, :, : self.num_tokens[row]].copy() for tensor in self.arena.tensors)

    def writable(self, num_new: int) -> ArenaCache:
        """This cache with room for num_new columns in every row: itself, or a copy when it is full or not the newest."""
        needed = int(self.num_tokens.max()) + num_new
        capacity = self.arena.capacity
        if needed <= capacity and self._newest():
            return self
        return self._copy(range(self.batch), capacity if needed <= capacity else max(2 * capacity, needed))

    def advanced(self, num_new: int, next_positions: NDArray[np.int64]) -> ArenaCache:
        """The cache behind num_new columns that the engine has just written into every row."""
        num_tokens = self.num_tokens + num_new
        self.arena.written[:] = num_tokens
        return ArenaCache(self.arena, num_tokens, next_positions)

    def _newest(self) -> bool:
        """Whether no other cache has gone on in this memory."""
        return bool((self.arena.written == self.num_tokens).all())

    def _copy(self, rows: Sequence[int], capacity: int) -> ArenaCache:
        tensor = self.arena.tensors[0]
        arena = new_arena(len(self.arena.tensors), (len(rows), tensor.shape[1], capacity, tensor.shape[3]), tensor.dtype)
        for row, source in enumerate(rows):
            arena.move(self.arena, source, row, int(self.num_tokens[source]))
        return ArenaCache(arena, self.num_tokens[rows], self.next_positions[rows])
