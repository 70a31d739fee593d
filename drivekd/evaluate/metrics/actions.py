"""Planned actions: whether an answer's set of actions is the true answer's, and the probability that it states.

The sets are read by drivekd.evaluate.extract.actions. F1 is over all answers together.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from .measures import Measure, counted, mean_of


def action_measures(predicted: Sequence[Collection[str]], true: Sequence[Collection[str]]) -> dict[str, Measure]:
    """By name: F1 of the sets, share of answers whose set is exactly the true one."""
    pairs = [(set(said), set(wanted)) for said, wanted in zip(predicted, true, strict=True)]
    columns = [
        [float(value) for value in column] for column in zip(*((len(a & b), len(a), len(b)) for a, b in pairs), strict=True)
    ]
    return {
        "action_f1": counted(columns, lambda sums: 2 * sums[..., 0] / (sums[..., 1] + sums[..., 2])),
        "action_exact": mean_of([said == wanted for said, wanted in pairs]),
    }


def probability_measure(predicted: Sequence[str | None], true: Sequence[str]) -> Measure:
    """Share of answers that state the true level; one that states none is wrong."""
    return mean_of([said == wanted for said, wanted in zip(predicted, true, strict=True)])
