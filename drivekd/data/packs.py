"""Frame packing, "ask once": questions about the same ordered images become one pack, with one vision pass and one prefix."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np

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
