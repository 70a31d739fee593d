"""The same question about the same pictures, asked twice: by 8-byte hashes, so that a million questions are 16 MB."""

from __future__ import annotations

from array import array
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from drivekd.sample import Sample


@dataclass(frozen=True)
class Repeats:
    """Places of samples in the file, in rising order, [n, 2]. duplicates: a sample, and the first with its question, pictures and
    answer. contradictions: a sample that is none, and the first with its question and pictures."""

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
        places = np.arange(len(asked))
        same, first = _first([asked, answered]), _first([asked])
        repeated = same != places
        return Repeats(_pairs(repeated, same), _pairs(~repeated & (first != places), first))


def _first(keys: list[NDArray[np.int64]]) -> NDArray[np.int64]:
    """For each place the first one that is alike in all keys, [N]."""
    order = np.lexsort((np.arange(len(keys[0])), *keys))
    is_new = np.zeros(len(order), bool)
    is_new[:1] = True
    for key in keys:
        is_new[1:] |= np.diff(key[order]) != 0
    first = np.empty(len(order), np.int64)
    first[order] = order[is_new][np.cumsum(is_new) - 1]
    return first


def _pairs(mask: NDArray[np.bool_], first: NDArray[np.int64]) -> NDArray[np.int64]:
    places = np.flatnonzero(mask)
    return np.stack([places, first[places]], 1)
