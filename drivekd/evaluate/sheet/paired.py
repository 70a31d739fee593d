"""Two runs' scores of the same questions: the mean difference, and an interval that draws whole scenes for both runs at once.

Drawing both together is what makes it paired: that a scene is hard for both widens nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

NUM_RESAMPLES = 2_000


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
        interval=_interval(b - a, clusters, seed),
        wins=int((b > a).sum()),
        losses=int((b < a).sum()),
        ties=int((b == a).sum()),
    )


def _interval(
    differences: np.ndarray[tuple[int], np.dtype[np.float64]], clusters: Sequence[str], seed: int
) -> tuple[float, float]:
    """95 % percentile interval. Where resampling would claim to be certain: all differences equal takes the exact binomial bound
    over the C scenes, 1 - .025 ** (1 / C), to either side (Clopper and Pearson 1934); one scene says nothing, (-1, 1)."""
    names, index = np.unique(np.asarray(clusters), return_inverse=True)
    if len(names) == 1:
        return -1.0, 1.0
    if np.all(differences == differences[0]):
        room = 1.0 - 0.025 ** (1 / len(names))
        return max(-1.0, float(differences[0]) - room), min(1.0, float(differences[0]) + room)
    sizes = np.bincount(index).astype(np.float64)  # [C]
    sums = np.bincount(index, weights=differences)  # [C]
    generator = np.random.default_rng(seed)
    means = np.empty(NUM_RESAMPLES)
    for resample in range(NUM_RESAMPLES):
        drawn = generator.integers(0, len(names), len(names))  # [C]
        means[resample] = sums[drawn].sum() / sizes[drawn].sum()
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)
