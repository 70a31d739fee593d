"""Memory of logits: written over when nobody holds it, and only then."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from drivekd.runtime.decoder.reserve import NUM_BLOCKS, LogitsMemory


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
