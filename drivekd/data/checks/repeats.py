"""The same question about the same pictures, asked twice: by 8-byte hashes, so that a million questions are 16 MB."""

from __future__ import annotations

from array import array
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from drivekd.sample import Sample


@dataclass(frozen=True)
class Repeats:
    """Places of samples in the file, in rising order. duplicates, contradictions: [n, 2], a sample and the first that asked the
    same; alike in the answer, or not."""

    duplicates: NDArray[np.int64]
    contradictions: NDArray[np.int64]


class RepeatCollector:
    """Gathers what was asked and answered."""

    def __init__(self) -> None:
        self._asked, self._answered = array("q"), array("q")

    def add(self, sample: Sample) -> None:
        """Add the next sample."""
        self._asked.append(hash((sample.question, sample.images)))
        self._answered.append(hash(sample.answer))

    def repeats(self) -> Repeats:
        """Of all that was added. Two questions have one hash by chance with probability 5e-20."""
        asked, answered = (np.frombuffer(values, np.int64) for values in (self._asked, self._answered))
        if not len(asked):
            return Repeats(np.zeros((0, 2), np.int64), np.zeros((0, 2), np.int64))
        order = np.argsort(asked, kind="stable")
        is_first = np.r_[True, np.diff(asked[order]) != 0]
        first = np.empty(len(asked), np.int64)
        first[order] = order[is_first][np.cumsum(is_first) - 1]
        again = first != np.arange(len(asked))
        alike = answered == answered[first]

        def pairs(mask: NDArray[np.bool_]) -> NDArray[np.int64]:
            places = np.flatnonzero(mask)
            return np.stack([places, first[places]], 1)

        return Repeats(pairs(again & alike), pairs(again & ~alike))
