"""Frame packing, "ask once": questions about the same ordered images become one pack, with one vision pass and one prefix.

In which order a run sees its packs is a pure function of seed and step, so that resuming needs no saved position.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from drivekd.sample import Sample

Pack: TypeAlias = tuple[Sample, ...]  # samples that show the same ordered images


def single_packs(samples: Sequence[Sample]) -> list[Pack]:
    """No packing: each sample is a pack of its own."""
    return [(sample,) for sample in samples]


def frame_packs(
    samples: Sequence[Sample],
    num_tokens: Callable[[Sample], tuple[int, int]],
    max_tokens: int,
    seed: int,
    *,
    by_capability: bool = False,
) -> list[Pack]:
    """Group samples by their ordered images; a pack holds at most `max_tokens` tokens, or one sample that alone is longer.

    num_tokens: a sample's (prefix, question and answer) tokens. A frame's questions are shuffled by `seed` before they are dealt
    out, else the packs of a frame with many questions would each hold one capability alone; by_capability: as they then do.
    """
    frames: dict[tuple[object, ...], list[Sample]] = {}
    for sample in samples:
        frames.setdefault((sample.images, sample.capability if by_capability else ""), []).append(sample)
    rng = np.random.default_rng([seed, 3])
    packs: list[Pack] = []
    for questions in frames.values():
        packs += _dealt([questions[i] for i in rng.permutation(len(questions))], num_tokens, max_tokens)
    return packs


def _dealt(questions: Sequence[Sample], num_tokens: Callable[[Sample], tuple[int, int]], max_tokens: int) -> list[Pack]:
    packs: list[Pack] = []
    pack: list[Sample] = []
    length = 0
    for sample in questions:
        prefix, own = num_tokens(sample)
        if pack and length + own > max_tokens:
            packs.append(tuple(pack))
            pack = []
        length = length + own if pack else prefix + own
        pack.append(sample)
    return [*packs, tuple(pack)]


class PackStream:
    """Endless shuffled epochs over packs; `stream` separates the shuffles of different files under one seed."""

    def __init__(self, packs: Sequence[Pack], *, seed: int, stream: int) -> None:
        self._packs = packs
        self._permutation = lru_cache(maxsize=2)(self._shuffle)
        self._seed = seed
        self._stream = stream

    def _shuffle(self, epoch: int) -> NDArray[np.int64]:
        return np.random.default_rng([self._seed, self._stream, epoch]).permutation(len(self._packs))

    def __len__(self) -> int:
        """Packs of one epoch."""
        return len(self._packs)

    def slice(self, start: int, count: int) -> list[Pack]:
        """Packs start .. start + count - 1 of the endless stream."""
        positions = (divmod(index, len(self._packs)) for index in range(start, start + count))
        return [self._packs[int(self._permutation(epoch)[offset])] for epoch, offset in positions]


def micro_batches(packs: Sequence[Pack], size: int, num_tokens: Callable[[Pack], int] | None = None) -> list[list[Pack]]:
    """Cut a step's packs into micro-batches of at most `size`, each of packs that ask for the same capabilities.

    A micro-batch of one capability needs one teacher and two backward passes; a mixed one needs up to four. Within a group packs
    are sorted by length, so that little is padding. The step's gradient is the same either way, since losses are normalised over
    the whole step.
    """
    groups: dict[tuple[str, ...], list[Pack]] = {}
    for pack in packs:
        groups.setdefault(tuple(sorted({sample.capability for sample in pack})), []).append(pack)
    ordered = [sorted(group, key=num_tokens) if num_tokens else group for _, group in sorted(groups.items())]
    return [group[start : start + size] for group in ordered for start in range(0, len(group), size)]
