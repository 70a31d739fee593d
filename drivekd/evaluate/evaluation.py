"""What `drivekd eval` does: opens what can answer, asks it every question that can be scored without a judge, scores, reports."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from drivekd.answered import Answered
from drivekd.data.json_file import write_json
from drivekd.data.readers import check_images, read_samples
from drivekd.evaluate.answering import CLEAN, Answerer, Pictures, open_answerer
from drivekd.evaluate.answering.opening import is_bundle
from drivekd.evaluate.asking import ask
from drivekd.evaluate.predictions import Identity, Line
from drivekd.evaluate.predictions.upstream import write_upstream
from drivekd.evaluate.scores import COLUMNS, EvaluationReport, caveats, metric_cells
from drivekd.evaluate.scoring import scorable, score, why_not_scored
from drivekd.evaluate.settings import EvalSettings, eval_settings
from drivekd.evaluate.settings_report import SETTINGS_FILE, settings_report
from drivekd.evaluate.structured_scores import structured_report, why_not_structured
from drivekd.evaluate.training_data import training_data
from drivekd.files import file_digest, versions
from drivekd.sample import Sample


def evaluate(
    answerer: Answerer,
    samples: Sequence[Sample],
    *,
    reference: Sequence[Sample] | None = None,
    seed: int = 0,
    pictures: Pictures = CLEAN,
    on_progress: Callable[[int, int], None] | None = None,
) -> EvaluationReport:
    """Score an answerer on labelled samples, without a file.

    reference: where the majority answers are counted, such as the training file; without it the evaluated file's own.
    Samples that nothing can score are counted, by reason, in the report's not_asked. Raises DataError, before anything is asked,
    when there is nothing to score.
    """
    asked = scorable(samples)
    done = [0]

    def count(*_: object) -> None:
        done[0] += 1
        if on_progress is not None:
            on_progress(done[0], len(asked))

    given = answerer.answers(asked, pictures=pictures, on_answer=count)
    assert len(given) == len(asked), f"{answerer.name} gave {len(given)} answers to {len(asked)} questions"
    return score(
        [Answered(sample, one, pictures.setting, pictures.severity) for sample, one in zip(asked, given, strict=True)],
        answerer=answerer.name,
        digest=answerer.digest,
        reference=reference or (),
        not_asked=Counter(reason for reason in map(why_not_scored, samples) if reason),
        seed=seed,
    )


@dataclass(frozen=True)
class EvalRequest:
    """What `drivekd eval` was asked for.

    records: to score on; image_root: what their relative image paths start from, None = their folder. reference: records whose
    majority answer is the baseline. settings: of the pictures, "clean,Fog" or "all". overrides: "key=value" of EvalSettings.
    """

    model: Path
    records: Path
    out: Path
    image_root: Path | None = None
    reference: Path | None = None
    settings: str = "clean"
    structured: bool = False
    overrides: Sequence[str] = ()


@dataclass(frozen=True)
class Evaluated:
    """header, rows: choice and yes/no accuracy, no rows without such questions. metrics: all others, under METRIC_COLUMNS, of the
    first picture setting, whose name is metrics_of. notes: what a reader of the tables must know. finished: no shard is still
    asking."""

    header: list[str] = field(default_factory=list)
    rows: list[list[str]] = field(default_factory=list)
    metrics: list[list[str]] = field(default_factory=list)
    metrics_of: str = ""
    notes: list[str] = field(default_factory=list)
    finished: bool = False


def evaluate_file(request: EvalRequest) -> Evaluated:
    """Score a checkpoint or bundle on a file of records; goes on where an earlier call with the same --out was stopped.

    Writes evaluation.json, predictions.jsonl (as answers come) and the reports into `request.out`.
    Raises UsageError (a setting, a folder that holds another evaluation), DataError, CheckpointError, BundleError, RunnerError.
    """
    settings = eval_settings(request.overrides)
    reference = read_samples(request.reference) if request.reference else ()
    run = run_questions(request, settings, why_not_structured if request.structured else why_not_scored)
    training = training_data(request.model, request.reference, reference)
    notes = [f"answers are cut after so many tokens: {run.answerer.budgets.told()}"]
    if run.num_open:
        notes.append(f"{run.num_open} questions of other shards are open; the last shard that ends scores them all")
        return Evaluated(notes=notes)
    reports: dict[str, EvaluationReport] = {}
    for pictures in settings.pictures(request.settings):
        answered = run.answered(pictures.setting)
        notes += _cut(pictures.setting, answered)
        report = structured_report if request.structured else score
        reports[pictures.setting] = report(
            answered,
            answerer=run.answerer.name,
            digest=run.answerer.digest,
            reference=reference,
            not_asked=run.not_asked,
            overlapping=training.marks(answered),
            overlap_with=training.name,
            seed=settings.seed,
        )
    for name, found in reports.items():
        write_json(request.out / ("report.json" if len(reports) == 1 else f"report.{name}.json"), found.to_json())
        notes += _told_overlap(name, found)
        if not request.structured:
            lines = [line for line in run.lines if line.answered.setting == name]
            notes += [f"for their own tools: {path}" for path in write_upstream(request.out, request.records, lines)]
    if len(reports) > 1 and not request.structured:  # it reads free text
        answers = {name: run.answered(name) for name in reports}
        write_json(request.out / SETTINGS_FILE, settings_report(answers, reports, seed=settings.seed))
    notes += [f"{count} of {run.num_records} records were not asked: {reason}" for reason, count in run.not_asked.items()]
    notes += [f"not computed: {what} ({why})" for found in [*reports.values()][:1] for what, why in found.missing.items()]
    setting, first = next(iter(reports.items()))
    others = [row for row in metric_cells(first) if row[0] != "accuracy"]
    return Evaluated(*_table(reports), others, setting, notes + caveats(first), finished=True)


@dataclass(frozen=True)
class Run:
    """Questions that were asked. lines: all answers there are, of all shards; num_open: questions without one.

    not_asked: reason -> how many of the num_records.
    """

    answerer: Answerer
    data_digest: str
    num_records: int
    not_asked: Mapping[str, int]
    lines: list[Line]
    num_open: int

    def answered(self, setting: str) -> list[Answered]:
        """The answers under one picture setting, in the order of the records."""
        return [line.answered for line in self.lines if line.answered.setting == setting]


def run_questions(request: EvalRequest, settings: EvalSettings, why_not: Callable[[Sample], str | None]) -> Run:
    """Ask what the folder `request.out` has no answer to yet. why_not: why a sample is not asked; None = it is.

    Raises as evaluate_file.
    """
    pictures, shard = settings.pictures(request.settings), settings.part()
    samples = read_samples(request.records, image_root=request.image_root)
    could_be = scorable(samples, why_not)
    asked = _asked(samples, could_be, settings.limit)
    if not all(one.are_black for one in pictures):
        check_images(asked.values())
    answerer = open_answerer(request.model, settings.answerer(structured=request.structured))
    decides = _decides(request, settings, pictures, answerer)
    Identity(decides, _told(request, answerer, pictures)).claim(request.out)
    lines, num_open = ask(answerer, asked, pictures, request.out, shard)
    not_asked = _not_asked(samples, why_not, len(asked), settings.limit)
    return Run(answerer, decides["data"], len(samples), not_asked, lines, num_open)


def _asked(samples: Sequence[Sample], chosen: Sequence[Sample], limit: int | None) -> dict[int, Sample]:
    """What is asked, by its index in the file; of each capability the first `limit`."""
    kept = {id(sample) for sample in chosen}
    counts: Counter[str] = Counter()
    asked: dict[int, Sample] = {}
    for index, sample in enumerate(samples):
        if id(sample) in kept and (limit is None or counts[sample.capability] < limit):
            counts[sample.capability] += 1
            asked[index] = sample
    return asked


def _decides(request: EvalRequest, settings: EvalSettings, pictures: Sequence[Pictures], answerer: Answerer) -> dict[str, Any]:
    """What answers depend on. Device, batch and shard are not among it: they may change between two parts of an evaluation."""
    root = request.image_root if request.image_root is not None else request.records.parent
    decides: dict[str, Any] = {
        "model": answerer.digest,
        "data": f"sha256:{file_digest(request.records)}",
        "image_root": str(root.resolve()),
        "settings": [one.setting for one in pictures],
        "max_new_tokens": {**answerer.budgets.tokens, "rest": answerer.budgets.rest},
        "structured": request.structured,
        "limit": settings.limit,
    }
    decides |= {"backend": settings.backend} if is_bundle(request.model) else {"precision": settings.precision}
    if any(one.by_frame for one in pictures):
        decides |= {"severity": settings.severity, "seed": settings.seed}
    return decides


def _told(request: EvalRequest, answerer: Answerer, pictures: Sequence[Pictures]) -> dict[str, Any]:
    return {
        "model": answerer.name,
        "data": str(request.records),
        "severities": {one.setting: one.severity for one in pictures},
        "began": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "versions": versions(),
    }


def _cut(setting: str, answered: Sequence[Answered]) -> list[str]:
    counts = Counter(one.sample.capability for one in answered if one.given.finish_reason == "length")
    if not counts:
        return []
    told = ", ".join(f"{name} {count}" for name, count in sorted(counts.items()))
    return [f"{setting}: {counts.total()} of {len(answered)} answers were cut there ({told}); --set max_new_tokens=N gives more"]


def _not_asked(
    samples: Sequence[Sample], why_not: Callable[[Sample], str | None], num_asked: int, limit: int | None
) -> dict[str, int]:
    """Reason -> number of records; together with those that were asked, all of the file."""
    counts = Counter(reason for reason in map(why_not, samples) if reason)
    if beyond := len(samples) - counts.total() - num_asked:
        counts[f"beyond the first {limit} of their capability"] = beyond
    return dict(counts)


def _told_overlap(setting: str, report: EvaluationReport) -> list[str]:
    overlap = report.overlap
    if overlap is None or not overlap.marked:
        return []
    return [
        f"{setting}: {overlap.marked} of {overlap.n} answers are about scenes, frames or pictures of {overlap.against}; "
        "the report has the scores without them, too (overlap)"
    ]


def _table(reports: Mapping[str, EvaluationReport]) -> tuple[list[str], list[list[str]]]:
    if len(reports) == 1:
        return list(COLUMNS), [list(row) for report in reports.values() for row in report.rows()]
    return ["pictures", *COLUMNS], [[name, *row] for name, report in reports.items() for row in report.rows()]
