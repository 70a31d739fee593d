"""Memory of a session, allocated once: K/V for a frame's prefix and for the branches that borrow rows, and logits of a step.

K/V keeps its contents from one frame to the next, so that only columns from the first change on are written or copied again.
Memory of logits is used again at the next step, without a caller noticing.

B rows of branches, C columns of capacity, V vocabulary
"""

from __future__ import annotations

import weakref
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from .arena import Arena, ArenaCache
from .protocol import Logits


class Loan:
    """Held by every cache in borrowed rows: when the last is gone, the rows are free."""


class Reserve:
    """The `Home` of a session's prefix. At first it holds nothing: the prefix then grows as far as it must, branches are
    copies."""

    def __init__(self, new_memory: Callable[[int, int, bool], Arena]) -> None:
        """new_memory(B, C, reserved) gives an arena; what it raises passes through."""
        self._new_memory = new_memory
        self._prefix: Arena | None = None
        self._branches: Arena | None = None
        self._alike = np.zeros(0, np.int64)  # leading columns in which a branch's row equals the prefix, [B]
        self._loan: weakref.ref[Loan] | None = None

    @property
    def rows(self) -> int:
        """Branches that it has room for; 0 before `hold`."""
        return 0 if self._branches is None else self._branches.batch

    @property
    def capacity(self) -> int:
        """Tokens that each has room for; 0 before `hold`."""
        return 0 if self._branches is None else self._branches.capacity

    def hold(self, rows: int, capacity: int) -> None:
        """Room for so many branches of so many tokens. More than before: new memory, of which a running frame sees nothing."""
        if rows <= self.rows and capacity <= self.capacity:
            return
        rows, capacity = max(rows, self.rows), max(capacity, self.capacity)
        self._branches = self._loan = None  # freed before the larger one is made
        self._branches = self._new_memory(rows, capacity, True)
        self._alike = np.zeros(rows, np.int64)

    def empty_prefix(self, room: int) -> ArenaCache:
        """The prefix's row with nothing in it; every cache of it so far is spent."""
        arena = self.prefix_row(room)
        arena.spend(0)
        self.cut(0)
        nothing = np.zeros(1, np.int64)
        return ArenaCache(arena, nothing, nothing, turn=int(arena.turn[0]), home=self)

    def prefix_row(self, num_columns: int) -> Arena:
        if self._prefix is None or self._prefix.capacity < num_columns:
            if self._prefix is not None:
                self._prefix.spend(0)
            self._prefix = self._new_memory(1, max(num_columns, self.capacity), False)
        return self._prefix

    def cut(self, num_columns: int) -> None:
        np.minimum(self._alike, num_columns, out=self._alike)

    def lend(self, prefix: ArenaCache, num_rows: int, num_columns: int) -> ArenaCache | None:
        """Only columns that changed since the last loan are copied.

        None when so many rows or columns were not reserved, or when a cache of the last loan is still held.
        """
        source, branches = prefix.unspent_arena(), self._branches
        held = self._loan is not None and self._loan() is not None
        if branches is None or held or num_rows > branches.batch or num_columns > branches.capacity:
            return None
        num_tokens, loan, first = int(prefix.num_tokens[0]), Loan(), [0] * num_rows
        for row in range(num_rows):
            branches.move(source, 0, row, num_tokens, int(self._alike[row]))
        self._alike[:num_rows] = num_tokens
        self._loan = weakref.ref(loan)
        arena, positions = branches.rows(0, num_rows), prefix.next_positions[first]
        return ArenaCache(arena, prefix.num_tokens[first], positions, alike=num_tokens, loan=loan)


NUM_BLOCKS = 2  # a decode loop holds the last logits while the next are written


class LogitsMemory:
    """Lends arrays [B, V]. A block is lent again once nobody holds its last array or a view of it.

    Whoever holds more arrays than there are blocks gets new memory.
    """

    def __init__(self, vocab_size: int) -> None:
        self._vocab_size = vocab_size
        self._rows = 0
        self._blocks: list[_Block] = []

    def lend(self, rows: int) -> tuple[Logits, Logits]:
        """One memory as two arrays [B, V]: for the caller, whose hold is watched, and for an engine, whose hold is not."""
        if rows > self._rows:
            self._rows = rows
            self._blocks = [_Block(rows * self._vocab_size) for _ in range(NUM_BLOCKS)]
        shape = rows, self._vocab_size
        for block in self._blocks:
            if block.free:
                lent, hidden = block.lend(rows * self._vocab_size)
                return lent.reshape(shape), hidden.reshape(shape)
        fresh = np.empty(shape, np.float32)
        return fresh, fresh


class _Block:
    def __init__(self, num_values: int) -> None:
        self._memory = bytearray(num_values * np.dtype(np.float32).itemsize)  # numpy sees it as foreign: see `lend`
        self._lent: weakref.ref[NDArray[np.float32]] | None = None

    @property
    def free(self) -> bool:
        return self._lent is None or self._lent() is None

    def lend(self, num_values: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Two arrays over this memory. Every view of the first keeps the first alive, since its memory is no array's own."""
        lent = np.frombuffer(self._memory, np.float32, num_values)
        self._lent = weakref.ref(lent)
        return lent, np.frombuffer(self._memory, np.float32, num_values)
