"""A metric as sums over its answers, so that any of them can be resampled: what each answer adds, and what the sums become.

    accuracy      [right, 1] -> right / all
    F1            [matched, predicted, true] -> 2 matched / (predicted + true)
    BLEU          [matches and n-grams of orders 1 to 4, lengths] -> the corpus's BLEU

Letters: N answers, K sums, R resamples.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Measure:
    """parts [N, K]: what each answer adds. value: sums [..., K] -> [...], not a number where they decide nothing.

    maximum: the metric's own, None = it has no bound; its minimum is 0.
    """

    parts: Floats
    value: Callable[[Floats], Floats]
    maximum: float | None = 1.0

    def __len__(self) -> int:
        return len(self.parts)

    def of(self, sums: Floats) -> Floats:
        """sums [..., K] -> the metric [...]; 0/0 is not a number, without a word about it."""
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.asarray(self.value(sums), np.float64)

    def total(self) -> float:
        """The metric over all its answers."""
        return float(self.of(self.parts.sum(axis=0)))


def mean_of(values: Sequence[float] | Sequence[bool], *, maximum: float | None = 1.0) -> Measure:
    """The mean over answers. maximum: the largest that one value can be."""
    column = np.asarray(values, np.float64)
    return Measure(np.stack([column, np.ones_like(column)], axis=1), lambda sums: sums[..., 0] / sums[..., 1], maximum)


def counted(columns: Sequence[Sequence[float]], value: Callable[[Floats], Floats], *, empty: float | None = None) -> Measure:
    """columns: K lists of N. empty: what the metric is where `value` is not a number, None = not a number."""
    parts = np.asarray(columns, np.float64).T  # [N, K]
    if empty is None:
        return Measure(parts, value)
    return Measure(parts, lambda sums: np.nan_to_num(value(sums), nan=empty))
