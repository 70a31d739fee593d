"""What `drivekd score` does: answers that are there already are matched with records, scored, and reported."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from drivekd.answered import Answered
from drivekd.data.json_file import write_json
from drivekd.data.readers import SampleFile, read_samples
from drivekd.errors import DataError, UsageError
from drivekd.evaluate.predictions import AnswerFile, Identity, Line
from drivekd.evaluate.scores import COLUMNS, METRIC_COLUMNS, EvaluationReport, caveats, metric_cells
from drivekd.evaluate.scoring import score, why_not_scored
from drivekd.evaluate.settings_report import SETTINGS_HEADER, settings_cells, settings_report
from drivekd.evaluate.training_data import training_data
from drivekd.files import file_digest, json_digest, refuse_non_empty, whole_directory
from drivekd.sample import Sample

from .compat import (
    DRIVEBENCH_HEADER,
    DRIVELM_HEADER,
    drivebench_beside_ours,
    drivebench_cells,
    drivelm_beside_ours,
)
from .given_texts import read_given, settings_of
from .matching import Matched, match

Compat = Literal["drivelm", "drivebench"]
COMPATS: tuple[Compat, ...] = ("drivelm", "drivebench")
NAMED = 10  # unmatched records and answers that metrics.json names of each kind
RULE = {"drivelm": "DriveLM's challenge/evaluation.py", "drivebench": "DriveBench's toolkit, choices alone"}


@dataclass(frozen=True)
class ScoreRequest:
    """predictions: a file of answers or an evaluation's folder. records: what they answer; image_root: of its pictures.

    compat: whose rules stand beside ours. reference: as in an evaluation.
    """

    predictions: Path
    records: Path
    out: Path
    compat: str | None = None
    reference: Path | None = None
    image_root: Path | None = None


@dataclass(frozen=True)
class Scores:
    """tables: (title, header, rows). notes: what a reader of them must know."""

    tables: list[tuple[str, list[str], list[list[str]]]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def score_file(request: ScoreRequest) -> Scores:
    """Score given answers. Writes metrics.json, a report for each picture setting and predictions.jsonl into `request.out`.

    Raises UsageError (an unknown toolkit, a folder that is not empty), DataError naming file and record.
    """
    if request.compat is not None and request.compat not in COMPATS:
        raise UsageError(f"--compat: expected {' or '.join(COMPATS)}, found {request.compat!r}")
    refuse_non_empty(request.out, "give a new --out")
    samples = read_samples(request.records, image_root=request.image_root, unlabelled=True)
    given = read_given(request.predictions)
    matched = {name: match([one for one in given if one.setting == name], samples) for name in settings_of(given)}
    if not any(one.answered for one in matched.values()):
        first = next((text for one in matched.values() for text in one.unknown), "there are none")
        raise DataError(f"{request.predictions}: no answer is for a record of {request.records}; the first: {first}")
    reports = _reports(request, samples, matched)
    scores = Scores()
    value = {**_origin(request), "reports": {name: report.to_json() for name, report in reports.items()}}
    value["matching"] = {name: _matching(one, samples, scores, name) for name, one in matched.items()}
    value["compat"] = {name: _compat(request, samples, one, scores, name) for name, one in matched.items()}
    value["settings"] = settings_report({name: _answers(one) for name, one in matched.items()}, reports)
    if len(reports) > 1:
        scores.tables.append(("accuracy by picture setting", SETTINGS_HEADER, settings_cells(reports)))
    _write(request, reports, matched, value)
    for name, report in reports.items():
        title = f"{request.predictions} on {request.records}" + (f", {name}" if len(reports) > 1 else "")
        scores.tables.insert(0, (title, list(COLUMNS), [list(row) for row in report.rows()]))
        scores.tables.insert(1, (f"other metrics, {name}", list(METRIC_COLUMNS), metric_cells(report)))
        scores.notes.extend(caveats(report))
        scores.notes.extend(f"{count} records were not asked: {reason}" for reason, count in report.not_asked.items())
        scores.notes.extend(f"not computed: {what} ({why})" for what, why in report.missing.items())
    return scores


def _reports(request: ScoreRequest, samples: Sequence[Sample], matched: dict[str, Matched]) -> dict[str, EvaluationReport]:
    reference = read_samples(request.reference) if request.reference else ()
    model = request.predictions if request.predictions.is_dir() else request.predictions.parent
    training = training_data(model, request.reference, reference)
    not_asked = Counter(reason for reason in map(why_not_scored, samples) if reason)
    reports = {}
    for name, one in matched.items():
        answered = [answer for answer in _answers(one) if why_not_scored(answer.sample) is None]
        if answered:
            reports[name] = score(
                answered,
                answerer=str(request.predictions),
                digest=_digest(request.predictions),
                reference=reference,
                not_asked=not_asked,
                overlapping=training.marks(answered),
                overlap_with=training.name,
            )
    if not reports:
        raise DataError(f"{request.records}: none of the {len(samples)} records can be scored: {dict(not_asked)}")
    return reports


def _answers(matched: Matched) -> list[Answered]:
    return [answer for _, answer in matched.answered]


def _matching(matched: Matched, samples: Sequence[Sample], scores: Scores, name: str) -> dict[str, Any]:
    """For metrics.json; told as notes, too."""
    unanswered = [samples[place].source for place in matched.unanswered]
    for texts, told in ((unanswered, "records have no answer"), (matched.unknown, "answers have no record")):
        if texts:
            scores.notes.append(f"{name}: {len(texts)} {told}, no score counts them; the first: {texts[0]}")
    return {
        "matched": len(matched.answered),
        "records_without_answer": {"count": len(unanswered), "first": unanswered[:NAMED]},
        "answers_without_record": {"count": len(matched.unknown), "first": list(matched.unknown[:NAMED])},
    }


def _compat(request: ScoreRequest, samples: Sequence[Sample], matched: Matched, scores: Scores, name: str) -> dict[str, Any]:
    if request.compat == "drivelm":
        beside = drivelm_beside_ours(samples, _as_written(request), dict(matched.answered))
        scores.tables.append((f"{RULE['drivelm']}, {name}", DRIVELM_HEADER, beside.rows()))
        if not any(sample.tag for sample in samples):
            scores.notes.append(f"{request.records}: no record has a tag; DriveLM's rules say by tag how an answer counts")
        return {"drivelm": beside.to_json()}
    if request.compat == "drivebench":
        rows = drivebench_beside_ours(_answers(matched))
        scores.tables.append((f"{RULE['drivebench']}, {name}", DRIVEBENCH_HEADER, drivebench_cells(rows)))
        return {"drivebench": [asdict(row) for row in rows]}
    return {}


def _as_written(request: ScoreRequest) -> list[Sample]:
    """The records with their tags as in the file: upstream counts in pixels."""
    file = SampleFile(request.records, image_root=request.image_root, unlabelled=True)
    return [sample for record in file.as_written() for sample in record.samples]


def _origin(request: ScoreRequest) -> dict[str, Any]:
    return {
        "predictions": str(request.predictions),
        "predictions_digest": _digest(request.predictions),
        "data": str(request.records),
        "data_digest": f"sha256:{file_digest(request.records)}",
    }


def _digest(predictions: Path) -> str:
    if predictions.is_file():
        return f"sha256:{file_digest(predictions)}"
    return f"sha256:{json_digest([file_digest(path) for path in sorted(predictions.glob('predictions*.jsonl'))])}"


def _write(
    request: ScoreRequest, reports: dict[str, EvaluationReport], matched: dict[str, Matched], value: dict[str, Any]
) -> None:
    """evaluation.json claims the folder; predictions.jsonl and the reports are an evaluation's, so its sheet can be drawn."""
    decides = {"predictions": value["predictions_digest"], "data": value["data_digest"]}
    told = {"model": str(request.predictions), "data": str(request.records), "by": "drivekd score"}
    with whole_directory(request.out, error_type=DataError) as folder:
        _write_into(folder, Identity(decides, told), reports, matched, value)


def _write_into(
    folder: Path,
    identity: Identity,
    reports: dict[str, EvaluationReport],
    matched: dict[str, Matched],
    value: dict[str, Any],
) -> None:
    identity.claim(folder)
    with AnswerFile(folder / "predictions.jsonl") as file:
        for one in matched.values():
            for place, answer in one.answered:
                file.add(Line(place, answer))
    for name, report in reports.items():
        write_json(folder / ("report.json" if len(reports) == 1 else f"report.{name}.json"), report.to_json())
    write_json(folder / "metrics.json", value)
