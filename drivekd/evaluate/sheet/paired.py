"""Two runs' scores of the same questions: the mean difference, and an interval that draws whole scenes for both runs at once.

Drawing both together is what makes it paired: that a scene is hard for both widens nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from drivekd.evaluate.metrics import paired_difference
from drivekd.evaluate.metrics.measures import mean_of


@dataclass(frozen=True)
class Paired:
    """first, second: mean scores; difference: second minus first, with its 95 % interval. wins: questions that the second run
    scores higher on; losses: lower; ties: equal."""

    n: int
    first: float
    second: float
    difference: float
    interval: tuple[float, float]
    wins: int
    losses: int
    ties: int

    @property
    def is_decided(self) -> bool:
        """The whole interval lies on one side of 0."""
        low, high = self.interval
        return low > 0 or high < 0


def paired(first: Sequence[float], second: Sequence[float], clusters: Sequence[str], *, seed: int = 0) -> Paired:
    """Compare scores (0 to 1) of the same questions in the same order. clusters: their scenes. Raises ValueError for none."""
    if not first:
        raise ValueError("a difference of nothing")
    a, b = np.asarray(first, np.float64), np.asarray(second, np.float64)  # [N]
    return Paired(
        n=len(a),
        first=float(a.mean()),
        second=float(b.mean()),
        difference=float(b.mean() - a.mean()),
        interval=paired_difference(mean_of(first), mean_of(second), clusters, seed=seed).interval,
        wins=int((b > a).sum()),
        losses=int((b < a).sum()),
        ties=int((b == a).sum()),
    )
