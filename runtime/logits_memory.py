"""Memory for logits that is used again at the next step, without a caller noticing.

B rows, V vocabulary
"""

from __future__ import annotations

import weakref

import numpy as np
from numpy.typing import NDArray

from .decoder.protocol import Logits

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
