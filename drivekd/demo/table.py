"""The demo's one table."""

from __future__ import annotations

from collections.abc import Mapping

from drivekd.evaluate import EvaluationReport, ScoreRow
from drivekd.sample import CAPABILITIES

HEADER = ["", *CAPABILITIES]
TITLE = "accuracy on held-out scenes [95 % interval by scene]   * = not beyond the majority answer"


def accuracy_rows(reports: Mapping[str, EvaluationReport], baseline: EvaluationReport) -> list[list[str]]:
    """Rows of accuracy by capability: the majority answer first, then every report."""
    majority = ["majority answer", *(f"{baseline.row(name).majority:.3f}" for name in CAPABILITIES)]
    return [majority, *([who, *(format_score(report.row(name)) for name in CAPABILITIES)] for who, report in reports.items())]


def format_score(row: ScoreRow) -> str:
    """Accuracy with its 95 % interval, and a star when the interval does not lie beyond the majority answer's accuracy."""
    low, high = row.interval
    note = "" if row.beyond_majority else " *"
    return f"{row.accuracy:.3f} [{low:.3f}, {high:.3f}]{note}"
