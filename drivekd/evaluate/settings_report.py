"""What picture settings do to the scores: DriveBench's report by group, and what the pictures are worth at all."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from drivekd.answered import Answered
from drivekd.evaluate.comparison import Comparison, grounding
from drivekd.evaluate.corruptions import GROUPS
from drivekd.evaluate.metrics.drivebench import COLUMNS, PAPER, PAPER_JUDGE, CapabilityColumns, by_group
from drivekd.evaluate.scores import EvaluationReport
from drivekd.evaluate.scoring import why_not_scored

CLEAN, NO_IMAGE = "clean", "NoImage"
SETTINGS_FILE = "settings.json"
SETTINGS_HEADER = ["pictures", *COLUMNS]


def robustness(reports: Mapping[str, EvaluationReport]) -> list[CapabilityColumns]:
    """Accuracy of choice and yes/no questions by capability, for each setting and DriveBench group."""
    accuracies = {
        name: {row.capability: row.value for row in report.metrics if row.metric == "accuracy" and row.capability}
        for name, report in reports.items()
    }
    return by_group(accuracies, GROUPS)


def settings_report(
    answered: Mapping[str, Sequence[Answered]], reports: Mapping[str, EvaluationReport], *, seed: int = 0
) -> dict[str, Any] | None:
    """As JSON, None for a single setting. answered, reports: by setting. grounding: where clean and NoImage are both there."""
    if len(reports) < 2:
        return None
    return {
        "metric": "accuracy of choice and yes/no questions",
        "columns": list(COLUMNS),
        "rows": [{"pictures": row.name, "group": row.group, "values": row.cells()} for row in robustness(reports)],
        "grounding": _json(_grounding(answered, seed)),
        "paper": {"what": PAPER_JUDGE, "rows": [list(row) for row in PAPER]},
    }


def _grounding(answered: Mapping[str, Sequence[Answered]], seed: int) -> Comparison | None:
    if not {CLEAN, NO_IMAGE} <= answered.keys():
        return None
    clean, black = ([one for one in answered[name] if why_not_scored(one.sample) is None] for name in (CLEAN, NO_IMAGE))
    return grounding(clean, black, seed=seed)


def _json(comparison: Comparison | None) -> dict[str, Any] | None:
    if comparison is None:
        return None
    rows = [asdict(row) for row in comparison.rows]
    for row in rows:
        row["interval"] = [end if math.isfinite(end) else None for end in row["interval"]]
    return {
        "what": "clean (second) minus NoImage (first)",
        "rows": rows,
        "only_clean": comparison.only_second,
        "only_no_image": comparison.only_first,
    }


def settings_cells(reports: Mapping[str, EvaluationReport]) -> list[list[str]]:
    """Rows under SETTINGS_HEADER, settings of a group indented."""
    cells = []
    for row in robustness(reports):
        name = f"  {row.name}" if row.name in GROUPS.get(row.group, ()) else row.name
        cells.append([name, *("-" if value is None else f"{value:.3f}" for value in row.cells())])
    return cells
