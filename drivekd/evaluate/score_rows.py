"""Choice and yes/no accuracy by group, beside what no model is needed for; and object tags by capability."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

from drivekd.evaluate import metrics
from drivekd.evaluate.extract.named_fields import field_names, is_schema_valid
from drivekd.evaluate.metrics import Item, TagCounts
from drivekd.evaluate.scored import Scored, item_from_sample, label_class
from drivekd.evaluate.scores import MajoritySource, ScoreRow, TagRow
from drivekd.sample import CAPABILITIES, Sample


def reference_items(reference: Iterable[Sample]) -> list[Item]:
    """The labelled, parseable choice and yes/no samples of a reference file; it is counted, not judged."""
    closed = (sample for sample in reference if sample.answer_form != "open" and sample.answer is not None)
    return [item_from_sample(sample) for sample in closed if label_class(sample) is not None]


def score_rows(scored: Sequence[Scored], reference: Sequence[Item], seed: int) -> list[ScoreRow]:
    """Of all choice and yes/no questions, of each capability, of each of its topics."""
    scored = [one for one in scored if not one.is_open]
    if not scored:
        return []
    rows = [_score_row("all", "", "", scored, reference, seed)]
    for capability in CAPABILITIES:
        of_capability = [one for one in scored if one.sample.capability == capability]
        if not of_capability:
            continue
        rows.append(_score_row("capability", capability, "", of_capability, reference, seed))
        for topic in sorted({one.sample.topic for one in of_capability}):
            of_topic = [one for one in of_capability if one.sample.topic == topic]
            rows.append(_score_row("topic", capability, topic, of_topic, reference, seed))
    return rows


def _score_row(
    scope: Literal["all", "capability", "topic"],
    capability: str,
    topic: str,
    scored: Sequence[Scored],
    reference: Sequence[Item],
    seed: int,
) -> ScoreRow:
    items = [one.item for one in scored if one.item is not None]
    correct = [one.correct for one in scored]
    interval = metrics.bootstrap_interval(correct, [one.cluster for one in scored], seed=seed)
    majority = metrics.majority_baseline(items, reference)
    majority_accuracy = metrics.accuracy(majority.correct)
    binary = [(item.answer, one.parsed) for one, item in zip(scored, items, strict=True) if one.sample.answer_form == "yesno"]
    return ScoreRow(
        scope=scope,
        capability=capability,
        topic=topic,
        n=len(scored),
        accuracy=metrics.accuracy(correct),
        interval=interval,
        majority=majority_accuracy,
        majority_from=_majority_source(majority.from_reference),
        random=metrics.random_baseline(items),
        unparsed=sum(one.parsed is None for one in scored),
        excludes_majority=metrics.excludes(interval, majority_accuracy),
        balanced_accuracy=metrics.balanced_accuracy([answer for answer, _ in binary], [parsed for _, parsed in binary]),
        schema_valid=_schema_share(scored),
    )


def _majority_source(from_reference: Sequence[bool]) -> MajoritySource:
    if all(from_reference):
        return "reference"
    return "both" if any(from_reference) else "evaluated"


def _schema_share(scored: Sequence[Scored]) -> float | None:
    structured = [one for one in scored if field_names(one.answer)]
    return metrics.accuracy([is_schema_valid(one.text, one.answer) for one in structured]) if structured else None


def tag_rows(scored: Sequence[Scored]) -> list[TagRow]:
    """Of the open answers that find tags, by capability; counts are summed before dividing."""
    rows = []
    for capability in CAPABILITIES:
        group = [one for one in scored if one.sample.capability == capability and one.is_open and one.true_tags]
        if group:
            counts = sum((metrics.match_tags(one.predicted_tags, one.true_tags) for one in group), TagCounts())
            malformed = sum(one.malformed for one in group)
            rows.append(TagRow(capability, len(group), counts.precision, counts.recall, counts.f1, malformed))
    return rows
