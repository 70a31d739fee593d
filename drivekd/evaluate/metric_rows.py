"""Which metrics a group of answers has, and what they are.

A record is scored by every metric that its true answer allows: choice and yes/no questions by accuracy; open ones by language, by
tags where the answer finds some, by actions and probability where it plans some; any answer with named parts by its schema.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from drivekd.evaluate.extract.actions import actions, probability
from drivekd.evaluate.extract.named_fields import field_names, is_schema_valid
from drivekd.evaluate.metrics import Measure, match_tags
from drivekd.evaluate.metrics import language as coco
from drivekd.evaluate.metrics.accuracy import accuracy_measure, balanced_accuracy_measure
from drivekd.evaluate.metrics.actions import action_measures, probability_measure
from drivekd.evaluate.metrics.intervals import estimates
from drivekd.evaluate.metrics.measures import mean_of
from drivekd.evaluate.metrics.tags import first_object_hit, tag_measures
from drivekd.evaluate.scored import Scored
from drivekd.evaluate.scores import MetricRow
from drivekd.sample import CAPABILITIES


@dataclass(frozen=True)
class Family:
    """Metrics of the same answers. has: which answers these are, by what is true of them alone. measures: name -> metric.

    over_all: whether they mean something over capabilities; a language corpus is one capability's.
    """

    has: Callable[[Scored], bool]
    measures: Callable[[Sequence[Scored]], Mapping[str, Measure]]
    over_all: bool = True


def _accuracy(group: Sequence[Scored]) -> dict[str, Measure]:
    return {"accuracy": accuracy_measure([one.correct for one in group])}


def _balanced(group: Sequence[Scored]) -> dict[str, Measure]:
    answers = [one.item.answer if one.item else "" for one in group]
    return {"balanced_accuracy": balanced_accuracy_measure(answers, [one.parsed for one in group])}


def _tags(group: Sequence[Scored]) -> dict[str, Measure]:
    pairs = [(one.predicted_tags, one.true_tags) for one in group]
    return tag_measures([match_tags(*pair) for pair in pairs], [first_object_hit(*pair) for pair in pairs])


def _actions(group: Sequence[Scored]) -> dict[str, Measure]:
    return action_measures([actions(one.text) for one in group], [actions(one.answer) for one in group])


def _probability(group: Sequence[Scored]) -> dict[str, Measure]:
    true = [level for one in group if (level := probability(one.answer)) is not None]
    return {"probability": probability_measure([probability(one.text) for one in group], true)}


def _language(group: Sequence[Scored]) -> dict[str, Measure]:
    return coco.compare([one.text for one in group], [one.answer for one in group]).measures() if coco.is_available() else {}


def _schema(group: Sequence[Scored]) -> dict[str, Measure]:
    return {"schema_valid": mean_of([is_schema_valid(one.text, one.answer) for one in group])}


def _length(group: Sequence[Scored]) -> dict[str, Measure]:
    found = {"words": mean_of([len(one.text.split()) for one in group], maximum=None)}
    if any(one.given.tokens for one in group):
        found["tokens"] = mean_of([one.given.tokens for one in group], maximum=None)
    return found


def plans(one: Scored) -> bool:
    """Whether the true answer of an open planning question tells actions, "none" among them."""
    return one.is_open and one.sample.capability == "planning" and bool(actions(one.answer))


FAMILIES = (
    Family(lambda one: not one.is_open, _accuracy),
    Family(lambda one: one.sample.answer_form == "yesno", _balanced),
    Family(lambda one: one.is_open and bool(one.true_tags), _tags),
    Family(plans, _actions),
    Family(lambda one: plans(one) and probability(one.answer) is not None, _probability),
    Family(lambda one: one.is_open, _language, over_all=False),
    Family(lambda one: bool(field_names(one.answer)), _schema),
    Family(lambda one: True, _length),
)


def metric_rows(scored: Sequence[Scored], seed: int) -> Iterator[MetricRow]:
    """Every metric over all answers and by capability, with its interval."""
    for capability, group in groups(scored):
        for family, members in families_of(group, capability):
            clusters = [one.cluster for one in members]
            for name, found in estimates(family.measures(members), clusters, seed=seed).items():
                yield MetricRow(name, capability, found.n, found.value, found.interval, found.clusters)


def groups(scored: Sequence[Scored]) -> Iterator[tuple[str, list[Scored]]]:
    """("", all answers), then (capability, its answers) for those that have some."""
    if scored:
        yield "", list(scored)
    for capability in CAPABILITIES:
        group = [one for one in scored if one.sample.capability == capability]
        if group:
            yield capability, group


def families_of(group: Iterable[Scored], capability: str) -> Iterator[tuple[Family, list[Scored]]]:
    """Each family that has members among a group. capability: "" for the group of all."""
    group = list(group)
    for family in FAMILIES:
        members = [one for one in group if family.has(one)]
        if members and (capability or family.over_all):
            yield family, members
