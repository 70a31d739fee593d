"""Which teacher each sample learns from: the mixing matrix π (METHOD section 2). N samples."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from drivekd.sample import CAPABILITIES, Sample

RELEASED_DIAGONAL, RELEASED_ELSEWHERE = 0.8, 0.1  # the released mixing matrix (METHOD section 2)

MixingKind = Literal["routed", "released", "sampled"]


def mixing_matrix(kind: MixingKind) -> Tensor:
    """π [3, 3]: row = the sample's capability, column = the teacher's. `sampled` draws from the released one."""
    if kind == "routed":
        return torch.eye(len(CAPABILITIES))
    matrix = torch.full((len(CAPABILITIES), len(CAPABILITIES)), RELEASED_ELSEWHERE)
    return matrix.fill_diagonal_(RELEASED_DIAGONAL)


def sample_mixing(kind: MixingKind, samples: Sequence[Sample], seed: int, step: int) -> Tensor:
    """Each sample's row of weights over the three teachers, [N, 3].

    `sampled` draws one teacher a sample with the probabilities of its row: the same expectation as `released` (before projection)
    at the price of `routed`. The draw is a function of seed, step and the sample's words and picture names, whatever its batch.
    """
    matrix = mixing_matrix(kind)
    rows = matrix[[CAPABILITIES.index(sample.capability) for sample in samples]]  # [N, 3]
    if kind != "sampled":
        return rows
    drawn = torch.zeros_like(rows)
    for index, sample in enumerate(samples):
        images = [path.name for path in sample.images]  # not their folder: a moved data set draws the same
        words = zlib.crc32(f"{sample.question}\n{sample.answer}\n{images}".encode())
        point = np.random.default_rng([seed, 4, step, words]).random()
        drawn[index, int((rows[index].cumsum(0) <= point).sum().clamp(max=len(CAPABILITIES) - 1))] = 1.0
    return drawn
