"""Answers beside their records become scores: every labelled record by what its true answer allows, none silently left out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from drivekd.answered import Answered
from drivekd.errors import DataError
from drivekd.evaluate import metrics
from drivekd.evaluate.metric_rows import metric_rows
from drivekd.evaluate.metrics import language
from drivekd.evaluate.metrics.nuscenes_qa import Exact, exact_rows, is_exact
from drivekd.evaluate.score_rows import reference_items, score_rows, tag_rows
from drivekd.evaluate.scored import Scored, item_from_sample, label_class, parse_answer, scored_from
from drivekd.evaluate.scores import EvaluationReport, Overlap, Prediction
from drivekd.sample import Sample

__all__ = ["item_from_sample", "parse_answer", "scorable", "score", "why_not_scored"]


def why_not_scored(sample: Sample) -> str | None:
    """Why nothing can score this sample's answer, for counting; None when something can."""
    if sample.answer is None or not sample.answer.strip():
        return "without an answer to score against"
    if sample.answer_form != "open" and label_class(sample) is None:
        what = "one offered letter" if sample.answer_form == "choice" else "yes or no"
        return f"{sample.answer_form} questions whose true answer does not state {what}"
    return None


def scorable(samples: Sequence[Sample], why_not: Callable[[Sample], str | None] = why_not_scored) -> list[Sample]:
    """Those that can be scored, in their order. Raises DataError when none can, with what keeps them from it."""
    asked = [sample for sample in samples if why_not(sample) is None]
    if not asked:
        told = "; ".join(f"{count} {reason}" for reason, count in Counter(map(why_not, samples)).most_common())
        first = f", such as {samples[0].source}" if samples else ""
        raise DataError(f"none of {len(samples)} samples can be scored: {told or 'there are none'}{first}")
    return asked


def score(
    answered: Sequence[Answered],
    *,
    answerer: str,
    digest: str,
    reference: Sequence[Sample] = (),
    not_asked: Mapping[str, int] | None = None,
    overlapping: Sequence[bool] | None = None,
    overlap_with: str = "",
    seed: int = 0,
) -> EvaluationReport:
    """Score answers to `scorable` samples. answerer, digest: who gave them. not_asked: reason -> number of records.

    reference: where the majority answers are counted, such as the training file; empty: the answered samples themselves.
    overlapping: for each answer whether the model was trained on its scene, frame or picture, None = not known; overlap_with: by
    what that is known.

    Raises DataError for a sample that is not scorable, and when there are no answers.
    """
    if not answered:
        raise DataError("there are no answers to score")
    scored, items = scored_from(answered), reference_items(reference)
    return EvaluationReport(
        answerer=answerer,
        digest=digest,
        images=answered[0].setting,
        seed=seed,
        resamples=metrics.NUM_RESAMPLES,
        scores=tuple(score_rows(scored, items, seed)),
        tags=tuple(tag_rows(scored)),
        predictions=tuple(_prediction(one) for one in scored),
        metrics=tuple(metric_rows(scored, seed)),
        nuscenes_qa=tuple(exact_rows(_nuscenes_qa(scored), seed)),
        not_asked=dict(not_asked or {}),
        truncated=dict(Counter(one.sample.capability for one in answered if one.given.finish_reason == "length")),
        overlap=None if overlapping is None else _overlap(answered, overlapping, overlap_with, reference, seed),
        missing={} if language.is_available() else {"language": language.MISSING},
        implementations={"language": language.implementation()} if language.is_available() else {},
    )


def _nuscenes_qa(scored: Sequence[Scored]) -> list[Exact]:
    """The questions that tell how many hops they take: NuScenes-QA's."""
    return [
        Exact(one.sample.topic, one.sample.hop, is_exact(one.given.text, one.sample.answer or ""), one.cluster)
        for one in scored
        if one.sample.hop is not None
    ]


def _overlap(
    answered: Sequence[Answered], marked: Sequence[bool], against: str, reference: Sequence[Sample], seed: int
) -> Overlap:
    kept = [one for one, seen in zip(answered, marked, strict=True) if not seen]
    scored = scored_from(kept)
    rows = score_rows(scored, reference_items(reference), seed)
    return Overlap(against, len(answered), len(answered) - len(kept), tuple(rows), tuple(metric_rows(scored, seed)))


def _prediction(one: Scored) -> Prediction:
    sample = one.sample
    return Prediction(
        source=sample.source,
        capability=sample.capability,
        topic=sample.topic,
        kind=sample.answer_form,
        question=sample.question,
        answer=sample.answer or "",
        prediction=one.given.text,
        parsed=one.parsed,
        correct=None if one.is_open else one.correct,
    )
