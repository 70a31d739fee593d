"""What quantization cost on an evaluation set: the bundle's answers beside those of the checkpoint it came from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from drivekd.data.readers import read_samples
from drivekd.evaluate.answering import AnswererSettings, open_answerer
from drivekd.evaluate.answering.bundle_answerer import with_cameras
from drivekd.evaluate.evaluation import evaluate
from drivekd.evaluate.scores import EvaluationReport, ScoreRow
from drivekd.export.source.repeatable import EXPORT_THREADS
from drivekd.hf_checkpoint import Checkpoint

ACCURACY_HEADER = ["capability", "questions", "checkpoint [95 %]", "bundle [95 %]", "difference"]


@dataclass(frozen=True)
class AccuracyRow:
    """One capability's choice and yes/no questions, or all of them; lower, upper: 95 % intervals by scene; checkpoint_interval,
    bundle_interval: both as a pair."""

    capability: str
    questions: int
    checkpoint: float
    checkpoint_lower: float
    checkpoint_upper: float
    bundle: float
    bundle_lower: float
    bundle_upper: float

    @property
    def checkpoint_interval(self) -> tuple[float, float]:
        return self.checkpoint_lower, self.checkpoint_upper

    @property
    def bundle_interval(self) -> tuple[float, float]:
        return self.bundle_lower, self.bundle_upper

    @property
    def difference(self) -> float:
        """The bundle less the checkpoint: below 0, quantization cost answers."""
        return self.bundle - self.checkpoint

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "difference": self.difference}

    def cells(self) -> list[str]:
        """Under ACCURACY_HEADER."""
        before = f"{self.checkpoint:.3f} [{self.checkpoint_lower:.3f}, {self.checkpoint_upper:.3f}]"
        after = f"{self.bundle:.3f} [{self.bundle_lower:.3f}, {self.bundle_upper:.3f}]"
        return [self.capability, str(self.questions), before, after, f"{self.difference:+.3f}"]


def check_records(records: Path, cameras: Sequence[str]) -> None:
    """Read what `accuracy_rows` will ask, minutes later, of a bundle with these cameras. Raises DataError."""
    for sample in read_samples(records):
        with_cameras(sample, cameras)


def accuracy_rows(checkpoint: Path | Checkpoint, bundle: Path, records: Path) -> list[AccuracyRow]:
    """Ask both every question of a file of labelled records, the answers cut where the bundle cuts them.

    Raises DataError when nothing in it can be scored.
    """
    samples = read_samples(records)
    exported = open_answerer(bundle, AnswererSettings(threads=EXPORT_THREADS))
    exact = open_answerer(checkpoint, AnswererSettings(threads=EXPORT_THREADS, max_new_tokens=exported.budgets.tokens))
    before, after = (_scores(evaluate(answerer, samples)) for answerer in (exact, exported))
    return [_row(name, before[name], after[name]) for name in before]


def _scores(report: EvaluationReport) -> dict[str, ScoreRow]:
    """All questions, then each capability's."""
    return {row.capability or "all": row for row in report.scores if row.scope in ("all", "capability")}


def _row(name: str, before: ScoreRow, after: ScoreRow) -> AccuracyRow:
    return AccuracyRow(name, before.n, before.accuracy, *before.interval, after.accuracy, *after.interval)
