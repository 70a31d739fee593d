"""Answers beside their records become scores.

Scored: choice and yes/no questions; of the open ones those whose true answer holds object tags. The rest is counted, not asked.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from drivekd.answered import Answered
from drivekd.errors import DataError
from drivekd.evaluate import metrics
from drivekd.evaluate.extract import choice, options, yes_no
from drivekd.evaluate.extract.labels import label_letter, label_yes_no
from drivekd.evaluate.extract.named_fields import field_names, is_schema_valid
from drivekd.evaluate.metrics import Item, TagCounts
from drivekd.evaluate.scores import EvaluationReport, MajoritySource, Prediction, ScoreRow, TagRow
from drivekd.sample import CAPABILITIES, Sample
from drivekd.tags import CoordinateStyle, coordinate_style, find_tags, malformed_tags


@dataclass(frozen=True)
class _Scored:
    """One answered question. item: None for an open one."""

    sample: Sample
    item: Item | None
    text: str
    parsed: str | None

    @property
    def answer(self) -> str:
        return self.sample.answer or ""

    @property
    def correct(self) -> bool:
        return self.item is not None and self.parsed == self.item.answer


def scorable(samples: Sequence[Sample]) -> list[Sample]:
    """Those that can be scored, in their order.

    Raises DataError when a sample has no answer, when the answer of a choice or yes/no question states none of its classes, or
    when there is nothing to score.
    """
    style = _style(samples)
    asked = [sample for sample in samples if _item(sample) is not None or find_tags(_labelled_answer(sample), style)]
    if not asked:
        raise DataError(f"none of {len(samples)} samples is a choice or yes/no question or has tags in its answer")
    return asked


def score(
    answered: Sequence[Answered],
    *,
    answerer: str,
    digest: str,
    reference: Sequence[Sample] = (),
    open_not_scored: int = 0,
    seed: int = 0,
) -> EvaluationReport:
    """Score answers to `scorable` samples. answerer, digest: who gave them. reference: where the majority answers are counted,
    such as the training file; empty: the answered samples themselves. open_not_scored: how many questions were not asked."""
    style = _style([one.sample for one in answered])
    everything = [
        _Scored(one.sample, _item(one.sample), one.given.text, parse_answer(one.given.text, one.sample)) for one in answered
    ]
    scored = [one for one in everything if one.item is not None]
    return EvaluationReport(
        answerer=answerer,
        digest=digest,
        images=answered[0].setting,
        seed=seed,
        resamples=metrics.NUM_RESAMPLES,
        open_not_scored=open_not_scored,
        scores=tuple(_score_rows(scored, _reference_items(reference), seed)),
        tags=tuple(_tag_rows([one for one in everything if one.item is None], style)),
        predictions=tuple(_prediction(one) for one in everything),
    )


def _style(samples: Iterable[Sample]) -> CoordinateStyle:
    return coordinate_style(text for sample in samples for text in (sample.question, sample.answer or ""))


def _item(sample: Sample) -> Item | None:
    return None if sample.answer_form == "open" else item_from_sample(sample)


def parse_answer(text: str, sample: Sample) -> str | None:
    """The letter, "yes" or "no" that `text` states for this question; None when undecidable or the question is open."""
    if sample.answer_form == "choice":
        return choice(text, sample.question)
    return yes_no(text) if sample.answer_form == "yesno" else None


def item_from_sample(sample: Sample) -> Item:
    """A choice or yes/no sample as a scorable item. Raises DataError when its own answer states no class."""
    answer = _label_class(sample)
    classes = options(sample.question) if sample.answer_form == "choice" else {"yes": "yes", "no": "no"}
    if answer not in classes:
        raise DataError(f"{sample.source}: a {sample.answer_form} question whose answer states no class: {sample.answer!r}")
    return Item(
        topic=f"{sample.capability}/{sample.topic}/{sample.answer_form}",
        classes=classes,
        answer=answer,
        cluster=sample.scene or "|".join(map(str, sample.images)),
    )


def _label_class(sample: Sample) -> str | None:
    """The letter, "yes" or "no" that the true answer of a choice or yes/no sample states."""
    answer = _labelled_answer(sample)
    return label_letter(answer, sample.question) if sample.answer_form == "choice" else label_yes_no(answer)


def _labelled_answer(sample: Sample) -> str:
    if sample.answer is None:
        raise DataError(f"{sample.source}: no answer to score against; evaluate labelled records")
    return sample.answer


def _reference_items(reference: Iterable[Sample]) -> list[Item]:
    """The labelled, parseable choice and yes/no samples of a reference file; it is counted, not judged."""
    closed = (sample for sample in reference if sample.answer_form != "open" and sample.answer is not None)
    return [item_from_sample(sample) for sample in closed if _label_class(sample) is not None]


def _score_rows(scored: Sequence[_Scored], reference: Sequence[Item], seed: int) -> list[ScoreRow]:
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
    scored: Sequence[_Scored],
    reference: Sequence[Item],
    seed: int,
) -> ScoreRow:
    items = [one.item for one in scored if one.item is not None]
    correct = [one.correct for one in scored]
    interval = metrics.bootstrap_interval(correct, [item.cluster for item in items], seed=seed)
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


def _schema_share(scored: Sequence[_Scored]) -> float | None:
    structured = [one for one in scored if field_names(one.answer)]
    return metrics.accuracy([is_schema_valid(one.text, one.answer) for one in structured]) if structured else None


def _tag_rows(scored: Sequence[_Scored], style: CoordinateStyle) -> list[TagRow]:
    rows = []
    for capability in CAPABILITIES:
        group = [one for one in scored if one.sample.capability == capability]
        if not group:
            continue
        pairs = ((find_tags(one.text, style), find_tags(one.answer, style)) for one in group)
        counts = sum((metrics.match_tags(predicted, true) for predicted, true in pairs), TagCounts())
        malformed = sum(len(malformed_tags(one.text, style)) for one in group)
        rows.append(TagRow(capability, len(group), counts.precision, counts.recall, counts.f1, malformed))
    return rows


def _prediction(one: _Scored) -> Prediction:
    sample = one.sample
    correct = None if one.item is None else one.correct
    return Prediction(
        source=sample.source,
        capability=sample.capability,
        topic=sample.topic,
        kind=sample.answer_form,
        question=sample.question,
        answer=one.answer,
        prediction=one.text,
        parsed=one.parsed,
        correct=correct,
    )
