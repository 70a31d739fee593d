"""What an evaluation found, as a table, as JSON and as files."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from drivekd.data.json_file import write_json, write_text
from drivekd.evaluate.metrics import Interval

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
    """answerer, digest: who answered. open_not_scored: open questions without tags, which were not asked."""

    answerer: str
    digest: str
    images: str
    seed: int
    resamples: int
    open_not_scored: int
    scores: tuple[ScoreRow, ...]
    tags: tuple[TagRow, ...]
    predictions: tuple[Prediction, ...]

    def to_json(self) -> dict[str, Any]:
        """Everything but the single predictions."""
        return {
            "answerer": self.answerer,
            "digest": self.digest,
            "images": self.images,
            "seed": self.seed,
            "resamples": self.resamples,
            "open_not_scored": self.open_not_scored,
            "scores": [{**asdict(row), "interval": list(row.interval)} for row in self.scores],
            "tags": [asdict(row) for row in self.tags],
        }

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


COLUMNS = ("group", "n", "accuracy", "95 % interval", "majority", "random", "unparsed", "beyond majority")


def _table_row(row: ScoreRow) -> tuple[str, ...]:
    group = {"all": "all", "capability": row.capability, "topic": f"  {row.topic or '(no topic)'}"}[row.scope]
    low, high = row.interval
    numbers = (f"{row.accuracy:.3f}", f"{low:.3f}-{high:.3f}", f"{row.majority:.3f}", f"{row.random:.3f}")
    return (group, str(row.n), *numbers, str(row.unparsed), "yes" if row.beyond_majority else "no")


def write_report(report: EvaluationReport, out: Path) -> None:
    """Write report.json and predictions.jsonl into the folder `out`, each whole or not at all. Raises DataError."""
    write_text(out / "predictions.jsonl", _json_lines([asdict(prediction) for prediction in report.predictions]))
    write_json(out / "report.json", report.to_json())


def _json_lines(values: Sequence[dict[str, Any]]) -> str:
    return "".join(json.dumps(value) + "\n" for value in values)
