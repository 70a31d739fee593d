"""Two runs on the same questions, metric by metric: two models, or one with its pictures and with black ones (grounding)."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Sequence
from dataclasses import dataclass

from drivekd.answered import Answered
from drivekd.evaluate.metric_rows import families_of, groups
from drivekd.evaluate.metrics import Interval, paired_difference
from drivekd.evaluate.scored import scored_from
from drivekd.sample import Sample


@dataclass(frozen=True)
class DifferenceRow:
    """One metric over n questions that both runs answered, capability "" = all. difference: second minus first, with its 95 %
    interval by scene, of draws that take the same scenes of both; separated: the interval does not hold 0."""

    metric: str
    capability: str
    n: int
    first: float
    second: float
    difference: float
    interval: Interval
    separated: bool


@dataclass(frozen=True)
class Comparison:
    """only_first, only_second: questions that the other run did not answer; no row counts them."""

    rows: tuple[DifferenceRow, ...]
    only_first: int
    only_second: int


def compare_runs(first: Sequence[Answered], second: Sequence[Answered], *, seed: int = 0) -> Comparison:
    """Compare answers of two runs. A question is the same by its record's id, scene, frame, text and true answer, whatever file
    it was read from; where several are, they pair in their order."""
    pairs = _pairs(first, second)
    one, other = scored_from([a for a, _ in pairs]), scored_from([b for _, b in pairs])
    place = {id(item): index for index, item in enumerate(one)}
    rows = []
    for capability, group in groups(one):
        for family, members in families_of(group, capability):
            partners = [other[place[id(item)]] for item in members]
            measures, others = family.measures(members), family.measures(partners)
            clusters = [item.cluster for item in members]
            for name in (name for name in measures if name in others):
                found = paired_difference(measures[name], others[name], clusters, seed=seed)
                if found.value == found.value:  # what one class alone cannot decide is no number
                    rows.append(
                        DifferenceRow(
                            name, capability, found.n, found.first, found.second, found.value, found.interval, found.separated
                        )
                    )
    return Comparison(tuple(rows), len(first) - len(pairs), len(second) - len(pairs))


def grounding(clean: Sequence[Answered], black: Sequence[Answered], *, seed: int = 0) -> Comparison:
    """What the pictures are worth: each metric with black pictures (first) against the real ones (second). A difference that is
    not separated from 0 says that the answers do not show that anything was seen."""
    return compare_runs(black, clean, seed=seed)


def _pairs(first: Sequence[Answered], second: Sequence[Answered]) -> list[tuple[Answered, Answered]]:
    waiting: dict[tuple[str, ...], deque[Answered]] = defaultdict(deque)
    for one in second:
        waiting[_key(one.sample)].append(one)
    there = ((one, waiting[_key(one.sample)]) for one in first)
    return [(one, partners.popleft()) for one, partners in there if partners]


def _key(sample: Sample) -> tuple[str, ...]:
    pictures = "" if sample.frame else "|".join(path.name for path in sample.images)
    return sample.id, sample.scene, sample.frame, pictures, sample.question, sample.answer or ""
