"""Which gradient rows a run has: cross-entropy's, and one for each signal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

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
