"""What `drivekd eval` does: opens what can answer, asks it every question that can be scored without a judge, scores, reports.

Scored: choice and yes/no questions; of the open ones those whose true answer holds object tags. The rest is counted, not asked.
A checkpoint (torch) and a bundle (no torch) are told apart by the files in the directory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from drivekd.data.readers import read_samples
from drivekd.errors import DataError, UsageError
from drivekd.evaluate import metrics
from drivekd.evaluate.extract import choice, field_names, is_schema_valid, options, yes_no
from drivekd.evaluate.metrics import Item, TagCounts
from drivekd.evaluate.scores import (
    COLUMNS,
    EvaluationReport,
    ImageSetting,
    MajoritySource,
    Prediction,
    ScoreRow,
    TagRow,
    write_report,
)
from drivekd.files import refuse_non_empty
from drivekd.hf_checkpoint import Checkpoint
from drivekd.log import ProgressLine
from drivekd.sample import CAPABILITIES, Sample
from drivekd.tags import CoordinateStyle, coordinate_style, find_tags, malformed_tags

MAX_NEW_TOKENS = 24  # what is scored stands at an answer's beginning; what comes later is cut
BATCH_SIZE = 64  # questions that a checkpoint answers at once


class Answerer(Protocol):
    """A checkpoint or a bundle. name: its path; digest: "sha256:..." of what it is made of."""

    @property
    def name(self) -> str: ...

    @property
    def digest(self) -> str: ...

    def answers(
        self,
        samples: Sequence[Sample],
        *,
        images: ImageSetting = "clean",
        on_progress: Callable[[int, int], None] | None = None,
    ) -> list[str]:
        """Greedily generated texts in the order of `samples`. images "black": the same path with zeroed pixels."""
        ...


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


def evaluate(
    answerer: Answerer,
    samples: Sequence[Sample],
    *,
    reference: Sequence[Sample] | None = None,
    seed: int = 0,
    images: ImageSetting = "clean",
    on_progress: Callable[[int, int], None] | None = None,
) -> EvaluationReport:
    """Score an answerer on labelled samples.

    reference: where the majority answers are counted, such as the training file; without it the evaluated file's own.
    Raises DataError, before anything is asked, when a sample has no answer, when the answer of a choice or yes/no
    question states none of its classes, or when there is nothing to score.
    """
    style = coordinate_style(text for sample in samples for text in (sample.question, sample.answer or ""))
    items = {index: item_from_sample(sample) for index, sample in enumerate(samples) if sample.answer_form != "open"}
    asked = [index for index, sample in enumerate(samples) if index in items or find_tags(_labelled_answer(sample), style)]
    if not asked:
        raise DataError(f"none of {len(samples)} samples is a choice or yes/no question or has tags in its answer")
    questions = [samples[index] for index in asked]
    texts = answerer.answers(questions, images=images, on_progress=on_progress)
    assert len(texts) == len(questions), f"{answerer.name} gave {len(texts)} answers to {len(questions)} questions"
    answered = [
        _Scored(sample, items.get(index), text, parse_answer(text, sample))
        for index, sample, text in zip(asked, questions, texts, strict=True)
    ]
    scored = [one for one in answered if one.item is not None]
    return EvaluationReport(
        answerer=answerer.name,
        digest=answerer.digest,
        images=images,
        seed=seed,
        resamples=metrics.NUM_RESAMPLES,
        open_not_scored=len(samples) - len(asked),
        scores=tuple(_score_rows(scored, _reference_items(reference or ()), seed)),
        tags=tuple(_tag_rows([one for one in answered if one.item is None], style)),
        predictions=tuple(_prediction(one) for one in answered),
    )


def parse_answer(text: str, sample: Sample) -> str | None:
    """The letter, "yes" or "no" that `text` states for this question; None when undecidable or the question is open."""
    if sample.answer_form == "choice":
        return choice(text, sample.question)
    return yes_no(text) if sample.answer_form == "yesno" else None


def item_from_sample(sample: Sample) -> Item:
    """A choice or yes/no sample as a scorable item. Raises DataError when its own answer states no class."""
    answer = parse_answer(_labelled_answer(sample), sample)
    classes = options(sample.question) if sample.answer_form == "choice" else {"yes": "yes", "no": "no"}
    if answer not in classes:
        raise DataError(f"{sample.source}: a {sample.answer_form} question whose answer states no class: {sample.answer!r}")
    return Item(
        topic=f"{sample.capability}/{sample.topic}/{sample.answer_form}",
        classes=classes,
        answer=answer,
        cluster=sample.scene or "|".join(map(str, sample.images)),
    )


def _labelled_answer(sample: Sample) -> str:
    if sample.answer is None:
        raise DataError(f"{sample.source}: no answer to score against; evaluate labelled records")
    return sample.answer


def _reference_items(reference: Iterable[Sample]) -> list[Item]:
    """The labelled, parseable choice and yes/no samples of a reference file; it is counted, not judged."""
    closed = (sample for sample in reference if sample.answer_form != "open" and sample.answer is not None)
    return [item_from_sample(sample) for sample in closed if parse_answer(_labelled_answer(sample), sample) is not None]


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


def open_answerer(
    path: Path | Checkpoint,
    *,
    device: str = "cpu",
    batch_size: int = BATCH_SIZE,
    max_new_tokens: int = MAX_NEW_TOKENS,
    threads: int | None = None,
) -> Answerer:
    """manifest.json makes a bundle, config.json a checkpoint. device, batch_size: of a checkpoint.
    threads: of one operator of a bundle's engines, None = all cores; a checkpoint takes torch's own.

    Raises UsageError for anything else, BundleError or CheckpointError when the files do not hold what they promise.
    """
    if not isinstance(path, Checkpoint) and (path / "manifest.json").is_file():
        from drivekd.evaluate.bundle_answerer import BundleAnswerer

        return BundleAnswerer(path, max_new_tokens=max_new_tokens, threads=threads)
    if isinstance(path, Checkpoint) or (path / "config.json").is_file():
        from drivekd.evaluate.checkpoint_answerer import CheckpointAnswerer

        return CheckpointAnswerer(path, device=device, batch_size=batch_size, max_new_tokens=max_new_tokens)
    raise UsageError(f"{path}: expected a bundle (manifest.json) or a checkpoint directory (config.json), found neither")


def evaluate_file(
    model: Path, records: Path, out: Path, *, reference: Path | None = None, black: bool = False
) -> tuple[list[str], list[list[str]]]:
    """Score a checkpoint or bundle on a file of records; writes report.json and predictions.jsonl into `out`.

    reference: records whose majority answer is the baseline. Returns a table (header, rows).
    """
    refuse_non_empty(out, "give a new --out")
    samples = read_samples(records)
    line = ProgressLine()
    report = evaluate(
        open_answerer(model),
        samples,
        reference=read_samples(reference) if reference else None,
        images="black" if black else "clean",
        on_progress=lambda done, total: line.show(f"{done}/{total} answers", final=done == total),
    )
    write_report(report, out)
    return list(COLUMNS), [list(row) for row in report.rows()]
