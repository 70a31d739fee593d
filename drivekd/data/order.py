"""In which order a run sees its samples: a pure function of seed and step, so that resuming needs no saved position."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from drivekd.data.sample import CAPABILITIES, Sample


class SampleStream:
    """Endless shuffled epochs over samples; `stream` separates the shuffles of different files under one seed."""

    def __init__(self, samples: Sequence[Sample], *, seed: int, stream: int) -> None:
        self._samples = samples
        self._permutation = lru_cache(maxsize=2)(self._shuffle)
        self._seed = seed
        self._stream = stream

    def _shuffle(self, epoch: int) -> NDArray[np.int64]:
        return np.random.default_rng([self._seed, self._stream, epoch]).permutation(len(self._samples))

    def slice(self, start: int, count: int) -> list[Sample]:
        """Samples start .. start + count - 1 of the endless stream."""
        positions = (divmod(index, len(self._samples)) for index in range(start, start + count))
        return [self._samples[int(self._permutation(epoch)[offset])] for epoch, offset in positions]


def micro_batches(samples: Sequence[Sample], size: int) -> list[list[Sample]]:
    """Cut a step's samples into micro-batches of at most `size`, each of one capability.

    A micro-batch of one capability needs one teacher and two backward passes; a mixed one needs up to four. The step's
    gradient is the same either way, since losses are normalised over the whole step.
    """
    groups = [[sample for sample in samples if sample.capability == name] for name in CAPABILITIES]
    return [group[start : start + size] for group in groups for start in range(0, len(group), size)]
