"""The demo's one table."""

from __future__ import annotations

from collections.abc import Mapping

from drivekd.data.sample import CAPABILITIES
from drivekd.evaluate import EvaluationReport, ScoreRow

HEADER = ["", *CAPABILITIES]


def accuracy_rows(reports: Mapping[str, EvaluationReport], baseline: EvaluationReport) -> list[list[str]]:
    """Rows of accuracy by capability: the majority answer first, then every report that scored the capability."""
    majority = ["majority answer", *(f"{baseline.row(name).majority:.3f}" for name in CAPABILITIES)]
    return [majority, *([who, *(_cell(report, name) for name in CAPABILITIES)] for who, report in reports.items())]


def _cell(report: EvaluationReport, capability: str) -> str:
    try:
        row = report.row(capability)
    except KeyError:
        return ""
    return format_score(row)


def format_score(row: ScoreRow) -> str:
    """Accuracy with its 95 % interval; says so when the interval does not exclude the majority answer's accuracy."""
    low, high = row.interval
    note = "" if row.beyond_majority else "  not beyond majority"
    return f"{row.accuracy:.3f} [{low:.3f}, {high:.3f}]{note}"
