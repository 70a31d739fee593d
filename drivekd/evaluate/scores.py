"""What an evaluation found, as a table, as JSON and as files."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from drivekd.data.json_file import write_json, write_text
from drivekd.evaluate.metrics import Interval
from drivekd.evaluate.metrics.nuscenes_qa import ExactRow

MajoritySource = Literal["reference", "evaluated", "both"]


@dataclass(frozen=True)
class ScoreRow:
    """Choice and yes/no questions of one group: all, a capability, or a topic of one.

    interval: 95 %, by scene. majority: accuracy of the most common answer, counted in majority_from. random: uniform
    guess. unparsed: texts that state no answer; they count as wrong. balanced_accuracy: yes/no questions alone.
    schema_valid: share of texts with all the named parts of their true answer; None where none has any.
    """

    scope: Literal["all", "capability", "topic"]
    capability: str
    topic: str
    n: int
    accuracy: float
    interval: Interval
    majority: float
    majority_from: MajoritySource
    random: float
    unparsed: int
    excludes_majority: bool
    balanced_accuracy: float | None
    schema_valid: float | None

    @property
    def beyond_majority(self) -> bool:
        """The whole interval lies above the majority answer's accuracy."""
        return self.interval[0] > self.majority


@dataclass(frozen=True)
class TagRow:
    """Object tags over the open answers of one capability that hold some; counts are summed before dividing."""

    capability: str
    n: int
    precision: float
    recall: float
    f1: float
    malformed: int


@dataclass(frozen=True)
class MetricRow:
    """One metric over n answers of a capability ("" = all), with its 95 % interval by scene. scenes: how many were drawn from;
    below ten, the percentiles are too narrow.

    metric: accuracy, balanced_accuracy, tag_precision, tag_recall, tag_f1, first_object, action_f1, action_exact, probability,
    bleu_1 to bleu_4, rouge_l, cider, schema_valid (all 0 to 1), words, tokens (mean length). What each is: docs/evaluation.md.
    """

    metric: str
    capability: str
    n: int
    value: float
    interval: Interval
    scenes: int


@dataclass(frozen=True)
class Overlap:
    """The same scores without the questions whose scene, frame or picture the model was trained on; of n answers `marked` were.
    against: where it is known from what the model was trained on."""

    against: str
    n: int
    marked: int
    scores: tuple[ScoreRow, ...]
    metrics: tuple[MetricRow, ...]


@dataclass(frozen=True)
class Prediction:
    """One generated text beside its record, as predictions.jsonl has it.

    kind: the sample's answer_form. parsed: the letter, "yes" or "no" it states; correct: None if open.
    """

    source: str
    capability: str
    topic: str
    kind: str
    question: str
    answer: str
    prediction: str
    parsed: str | None
    correct: bool | None


@dataclass(frozen=True)
class EvaluationReport:
    """answerer, digest: who answered. images: the picture setting. not_asked: reason -> how many records were not asked for it.

    nuscenes_qa: exact matches by type and hop, of questions that tell their hop.
    truncated: capability -> answers that the budget cut. overlap: None where the model's training data is not known.
    missing: what could not be computed -> why. implementations: metric family -> what computed it.
    """

    answerer: str
    digest: str
    images: str
    seed: int
    resamples: int
    scores: tuple[ScoreRow, ...]
    tags: tuple[TagRow, ...]
    predictions: tuple[Prediction, ...]
    metrics: tuple[MetricRow, ...] = ()
    nuscenes_qa: tuple[ExactRow, ...] = ()
    not_asked: Mapping[str, int] = field(default_factory=dict)
    truncated: Mapping[str, int] = field(default_factory=dict)
    overlap: Overlap | None = None
    missing: Mapping[str, str] = field(default_factory=dict)
    implementations: Mapping[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Everything but the single predictions; described in docs/evaluation.md."""
        overlap = self.overlap
        return {
            "answerer": self.answerer,
            "digest": self.digest,
            "images": self.images,
            "seed": self.seed,
            "resamples": self.resamples,
            "scores": _json_rows(self.scores),
            "tags": _json_rows(self.tags),
            "metrics": _json_rows(self.metrics),
            "nuscenes_qa": _json_rows(self.nuscenes_qa),
            "not_asked": dict(self.not_asked),
            "truncated": dict(self.truncated),
            "overlap": None
            if overlap is None
            else {
                "against": overlap.against,
                "n": overlap.n,
                "marked": overlap.marked,
                "scores": _json_rows(overlap.scores),
                "metrics": _json_rows(overlap.metrics),
            },
            "missing": dict(self.missing),
            "implementations": dict(self.implementations),
        }

    def metric(self, name: str, capability: str = "") -> MetricRow:
        """One metric of a capability, "" = over all. Raises KeyError."""
        for row in self.metrics:
            if (row.metric, row.capability) == (name, capability):
                return row
        raise KeyError(f"no {name} of {capability or 'all answers'}")

    def rows(self) -> list[tuple[str, ...]]:
        """The scores as text under `COLUMNS`, for a table."""
        return [_table_row(row) for row in self.scores]

    def row(self, capability: str, topic: str | None = None) -> ScoreRow:
        """The score of one capability, or of one of its topics. Raises KeyError."""
        scope = "capability" if topic is None else "topic"
        for row in self.scores:
            if (row.scope, row.capability) == (scope, capability) and topic in (None, row.topic):
                return row
        raise KeyError(f"no scored question of {capability} {topic or ''}".strip())


def _json_rows(rows: Sequence[ScoreRow] | Sequence[TagRow] | Sequence[MetricRow] | Sequence[ExactRow]) -> list[dict[str, Any]]:
    """Intervals without a bound have null there: JSON has no infinity."""
    return [
        {
            name: [end if math.isfinite(end) else None for end in value] if name == "interval" else value
            for name, value in asdict(row).items()
        }
        for row in rows
    ]


COLUMNS = ("group", "n", "accuracy", "95 % interval", "majority", "random", "unparsed", "beyond majority")


def _table_row(row: ScoreRow) -> tuple[str, ...]:
    group = {"all": "all", "capability": row.capability, "topic": f"  {row.topic or '(no topic)'}"}[row.scope]
    numbers = (f"{row.accuracy:.3f}", _interval_cell(row.interval), f"{row.majority:.3f}", f"{row.random:.3f}")
    return (group, str(row.n), *numbers, str(row.unparsed), "yes" if row.beyond_majority else "no")


FEW_SCENES = 10


def caveats(report: EvaluationReport) -> list[str]:
    """Notes where intervals draw from too few scenes to be believed, and where the majority has seen what it guesses."""
    scenes = max((row.scenes for row in report.metrics), default=FEW_SCENES)
    few = f"{report.images}: only {scenes} scenes; intervals that draw from so few are too narrow to be believed"
    majority = majority_caveat([asdict(row) for row in report.scores])
    return [few] * (scenes < FEW_SCENES) + ([f"{report.images}: {majority}"] if majority else [])


def majority_caveat(rows: Sequence[Mapping[str, Any]]) -> str | None:
    """What a majority is worth that was counted in the very answers it is compared with; None where no row's was.

    rows: of a report's scores, as in report.json. An answer that only one question offers is its own majority there.
    """
    own = sorted({row["topic"] for row in rows if row["scope"] == "topic" and row["majority_from"] != "reference"})
    if not own:
        return None
    which = ", ".join(topic or "(no topic)" for topic in own)
    return f"the majority of {which} was counted in the scored records themselves, which favours it; --reference had none of them"


METRIC_COLUMNS = ("metric", "capability", "n", "value", "95 % interval")


def metric_cells(report: EvaluationReport) -> list[list[str]]:
    """A report's metrics as text, under METRIC_COLUMNS."""
    return [
        [row.metric, row.capability or "all", str(row.n), f"{row.value:.3f}", _interval_cell(row.interval)]
        for row in report.metrics
    ]


def _interval_cell(interval: Interval) -> str:
    """A dash where one scene is all there is of a metric without a maximum."""
    return f"{interval[0]:.3f}-{interval[1]:.3f}" if math.isfinite(interval[1]) else "-"


def write_report(report: EvaluationReport, out: Path) -> None:
    """Write report.json and predictions.jsonl into the folder `out`, each whole or not at all. Raises DataError."""
    write_text(out / "predictions.jsonl", _json_lines([asdict(prediction) for prediction in report.predictions]))
    write_json(out / "report.json", report.to_json())


def _json_lines(values: Sequence[dict[str, Any]]) -> str:
    return "".join(json.dumps(value) + "\n" for value in values)
