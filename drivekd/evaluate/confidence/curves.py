"""How far confidences are from what they promise, and what abstaining brings.

N answers
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from .fit import Bools, Floats


@dataclass(frozen=True)
class Bin:
    """Answers of about the same confidence: how many, their mean confidence, the share that is right."""

    n: int
    confidence: float
    accuracy: float


def equal_mass_bins(confidence: Floats, right: Bools, num_bins: int) -> list[Bin]:
    """By confidence, the same number in each but for one; answers of one confidence are never parted, so there may be fewer.

    [N] answers -> at most num_bins, the least sure first (Nixon et al., arXiv 1904.01685, section 3.2).
    """
    order = np.argsort(confidence, kind="stable")
    sure, hits = confidence[order], right[order]
    ends = np.unique(np.round(np.arange(1, num_bins + 1) * len(sure) / num_bins).astype(int))
    ends = np.unique(np.searchsorted(sure, sure[ends[ends > 0] - 1], side="right"))  # up to the last equal one
    starts = np.concatenate([[0], ends[:-1]])
    return [
        Bin(int(end - start), float(sure[start:end].mean()), float(hits[start:end].mean()))
        for start, end in zip(starts, ends, strict=True)
    ]


def calibration_error(bins: list[Bin]) -> float:
    """Expected calibration error: the distance of confidence and accuracy, mean over answers (Guo et al., arXiv 1706.04599)."""
    return sum(one.n * abs(one.confidence - one.accuracy) for one in bins) / sum(one.n for one in bins)


def error_by_chance(bins: list[Bin]) -> float:
    """About the calibration error that confidences would show which keep exactly what they promise: n answers of confidence c
    are right sqrt(c (1 - c) / n) more or less often than c, and the mean distance is sqrt(2 / pi) of that."""
    return sum(math.sqrt(2 / math.pi * one.n * one.confidence * (1 - one.confidence)) for one in bins) / sum(
        one.n for one in bins
    )


def risk_coverage(confidence: Floats, right: Bools) -> list[tuple[float, float]]:
    """(coverage, risk): the share of answers that are given when less sure ones are abstained from, and the share of them that
    is wrong. One point for each different confidence, the surest first (Geifman and El-Yaniv, arXiv 1705.08500)."""
    order = np.argsort(-confidence, kind="stable")
    sure, wrong = confidence[order], np.cumsum(~right[order])
    ends = np.flatnonzero(np.append(sure[1:] < sure[:-1], True))
    return [((end + 1) / len(order), float(wrong[end] / (end + 1))) for end in ends.tolist()]


def area_under(points: list[tuple[float, float]]) -> float:
    """AURC: mean risk over all coverages; equally sure answers share the risk of their last point."""
    area, before = 0.0, 0.0
    for coverage, risk in points:
        area += (coverage - before) * risk
        before = coverage
    return area
