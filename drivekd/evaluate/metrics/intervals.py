"""How sure a number is: bootstrap over scenes.

Questions of one scene show the same road, so whole scenes (clusters) are drawn, with replacement, and the metric is computed
anew of each draw; 95 % of the draws lie between the interval's ends (percentile bootstrap, Efron and Tibshirani 1993, chapters 8
and 13). Where resampling would claim to be certain, it says less: at a metric's own end (all right, all wrong) the exact binomial
bound over the C clusters, .025 ** (1 / C) (Clopper and Pearson 1934), takes its place; where all clusters are alike in between, a
share of 1 - .025 ** (1 / C) may be anything. A single cluster says nothing: the metric's whole range.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from .measures import Floats, Measure, mean_of

Interval: TypeAlias = tuple[float, float]

NUM_RESAMPLES = 2_000
_CHUNK = 4_000_000  # resampled clusters held at once (32 MB)
_AT_THE_END = 1e-6  # BLEU's own smoothing keeps a perfect corpus 1e-9 below 1


@dataclass(frozen=True)
class Estimate:
    """A metric over n answers of so many clusters with its 95 % interval."""

    n: int
    value: float
    interval: Interval
    clusters: int


def estimates(
    measures: Mapping[str, Measure], clusters: Sequence[str], *, seed: int = 0, resamples: int = NUM_RESAMPLES
) -> dict[str, Estimate]:
    """Metrics of the same answers, from the same draws; those that the answers do not decide are left out."""
    found = {name: estimate(measure, clusters, seed=seed, resamples=resamples) for name, measure in measures.items()}
    return {name: one for name, one in found.items() if np.isfinite(one.value)}


def estimate(measure: Measure, clusters: Sequence[str], *, seed: int = 0, resamples: int = NUM_RESAMPLES) -> Estimate:
    """The metric and its interval. clusters: of each answer. Raises ValueError without answers."""
    if not len(measure):
        raise ValueError("a metric of nothing")
    value = measure.total()
    by_cluster = _sums(measure, clusters)  # [C, K]
    return Estimate(len(measure), value, _interval(measure, by_cluster, value, seed, resamples), len(by_cluster))


def bootstrap_interval(
    correct: Sequence[bool], clusters: Sequence[str], *, seed: int = 0, resamples: int = NUM_RESAMPLES
) -> Interval:
    """95 % interval of an accuracy."""
    return estimate(mean_of(correct), clusters, seed=seed, resamples=resamples).interval


@dataclass(frozen=True)
class Difference:
    """Of two runs on the same questions: value = second minus first, with its 95 % interval.

    separated: the interval does not hold 0.
    """

    n: int
    first: float
    second: float
    value: float
    interval: Interval

    @property
    def separated(self) -> bool:
        """Whether chance alone is a poor explanation of the difference."""
        return excludes(self.interval, 0.0)


def paired_difference(
    first: Measure, second: Measure, clusters: Sequence[str], *, seed: int = 0, resamples: int = NUM_RESAMPLES
) -> Difference:
    """Two runs' metric on the same answers' questions, in the same order: every draw takes the same scenes of both.

    A single scene says nothing: the interval is the whole range. Where every draw is alike, resampling would claim to be
    certain: the exact binomial bound over the C scenes, 1 - .025 ** (1 / C) of the range to either side, says what C scenes
    can (Clopper and Pearson 1934). Raises ValueError for other lengths.
    """
    if len(first) != len(second) or not len(first):
        raise ValueError(f"runs of {len(first)} and {len(second)} answers cannot be paired")
    of_first, of_second = _sums(first, clusters), _sums(second, clusters)
    values = (first.total(), second.total())
    widest = first.maximum if first.maximum is not None else np.inf
    difference = values[1] - values[0]
    draws = [second.of(counts @ of_second) - first.of(counts @ of_first) for counts in _draws(len(of_first), seed, resamples)]
    found = np.concatenate(draws)
    found = found[np.isfinite(found)]
    if len(of_first) == 1 or not len(found):
        low, high = -widest, widest
    elif np.ptp(found) < _AT_THE_END:
        room = (1.0 - 0.025 ** (1 / len(of_first))) * widest
        low, high = max(-widest, difference - room), min(widest, difference + room)
    else:
        low, high = np.percentile(found, [2.5, 97.5])
    return Difference(len(first), *values, difference, (float(low), float(high)))


def excludes(interval: Interval, value: float) -> bool:
    """Whether `value` lies outside the interval."""
    low, high = interval
    return value < low or value > high


def _sums(measure: Measure, clusters: Sequence[str]) -> Floats:
    """[C, K]: the parts summed over each cluster's answers."""
    names, index = np.unique(np.asarray(clusters), return_inverse=True)
    sums = np.zeros((len(names), measure.parts.shape[1]))
    np.add.at(sums, index, measure.parts)
    return sums


def _interval(measure: Measure, by_cluster: Floats, value: float, seed: int, resamples: int) -> Interval:
    widest = np.inf if measure.maximum is None else measure.maximum
    edge = 0.025 ** (1 / len(by_cluster))
    if measure.maximum is not None and value >= measure.maximum * (1 - _AT_THE_END):
        return edge * measure.maximum, measure.maximum
    if measure.maximum is not None and value <= measure.maximum * _AT_THE_END:
        return 0.0, (1 - edge) * measure.maximum
    found = np.concatenate([measure.of(counts @ by_cluster) for counts in _draws(len(by_cluster), seed, resamples)])
    found = found[np.isfinite(found)]  # a draw without one of the classes has no balanced accuracy
    if len(by_cluster) == 1 or not len(found):
        return 0.0, float(widest)
    if measure.maximum is not None and np.ptp(found) < _AT_THE_END:
        return edge * value, edge * value + (1 - edge) * measure.maximum
    low, high = np.percentile(found, [2.5, 97.5])
    return float(low), float(high)


def _draws(num_clusters: int, seed: int, resamples: int) -> Iterator[NDArray[np.float64]]:
    """[R, C]: how often each cluster was drawn, in pieces that fit into memory; the pieces' size changes no draw."""
    generator = np.random.default_rng(seed)
    rows = max(1, _CHUNK // num_clusters)
    for start in range(0, resamples, rows):
        num_rows = min(rows, resamples - start)
        drawn = generator.integers(0, num_clusters, (num_rows, num_clusters))  # [R, C]
        flat = (drawn + np.arange(num_rows)[:, None] * num_clusters).ravel()
        yield np.bincount(flat, minlength=num_rows * num_clusters).reshape(num_rows, num_clusters).astype(np.float64)
