"""What the tests of caches and of a session's K/V memory share: an arena that is full of NaN."""

from __future__ import annotations

import numpy as np

from drivekd.runtime.decoder.arena import Arena, new_arena

HEADS, DIM, TENSORS = 2, 4, 4


def memory(rows: int, capacity: int, reserved: bool = False) -> Arena:
    """Empty rows; whoever copies more than is filled copies NaN."""
    arena = new_arena(TENSORS, (rows, HEADS, capacity, DIM), np.dtype(np.float32), reserved=reserved)
    for tensor in arena.tensors:
        tensor[:] = np.nan
    return arena
