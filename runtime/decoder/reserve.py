"""K/V memory of a session, allocated once: a row in which its prefix grows, and rows that the branches of a frame borrow.

Both keep their contents from one frame to the next, so that only columns from the first change on are written or copied again.

B rows of branches, C columns of capacity
"""

from __future__ import annotations

import weakref
from collections.abc import Callable

import numpy as np

from .arena import Arena, ArenaCache


class Loan:
    """Held by every cache in borrowed rows: when the last is gone, the rows are free."""


class Reserve:
    """The Home of a session's prefix. At first it holds nothing: the prefix then grows as far as it must, branches are copies."""

    def __init__(self, new_memory: Callable[[int, int, bool], Arena]) -> None:
        """new_memory(B, C, reserved) gives an arena; what it raises passes through."""
        self._new_memory = new_memory
        self._prefix: Arena | None = None
        self._branches: Arena | None = None
        self._alike = np.zeros(0, np.int64)  # leading columns in which a branch's row equals the prefix, [B]
        self._loan: weakref.ref[Loan] | None = None

    @property
    def rows(self) -> int:
        return 0 if self._branches is None else self._branches.batch

    @property
    def capacity(self) -> int:
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
