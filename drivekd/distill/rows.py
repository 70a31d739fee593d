"""Which gradient rows a run has, cross-entropy's and one for each signal; and which teacher each sample learns from.

The latter is the mixing matrix π (docs/method.md, "Losses and weights"). N samples.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from drivekd.config import RunConfig
from drivekd.distill.projection import Pair
from drivekd.sample import CAPABILITIES, Capability, Sample


@dataclass(frozen=True)
class Rows:
    """names[i] says what row i is; anchors: capability -> CE row; followers: capability -> signal row."""

    names: tuple[str, ...]
    anchors: dict[Capability, int]
    followers: dict[Capability, int]

    @property
    def pairs(self) -> list[Pair]:
        """(anchor, follower) of each capability with a signal, as `drivekd.distill.projection.project` takes them."""
        return [(self.anchors[name], row) for name, row in self.followers.items()]


def rows_for(config: RunConfig) -> Rows:
    """One shared CE row, or one CE row for each capability, then one row for each signal."""
    capabilities = tuple(config.teachers.paths())
    own = config.projection.anchor == "own" and bool(capabilities)
    names = [f"ce_{name}" for name in CAPABILITIES] if own else ["ce"]
    anchors = {name: index if own else 0 for index, name in enumerate(CAPABILITIES)}
    followers = {name: len(names) + index for index, name in enumerate(capabilities)}
    return Rows((*names, *capabilities), anchors, followers)


def row_shares(rows: Rows, samples: Sequence[Sample], mixing: Tensor) -> dict[str, float]:
    """What part of a step each row's loss is taken over; the summed loss divided by it is the mean over the row's own samples.

    mixing [N, 3]: each sample's weights over the teachers.
    """
    labelled = [sample.capability for sample in samples if sample.answer is not None]
    shares = dict.fromkeys(rows.names, 0.0)
    for name in labelled:
        shares[rows.names[rows.anchors[name]]] += 1 / len(labelled)
    for name, row in rows.followers.items():
        shares[rows.names[row]] = float(mixing[:, CAPABILITIES.index(name)].sum()) / len(samples)
    return shares


RELEASED_DIAGONAL, RELEASED_ELSEWHERE = 0.8, 0.1  # the released mixing matrix (docs/method.md, "Losses and weights")
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
