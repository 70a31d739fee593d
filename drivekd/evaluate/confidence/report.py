"""What calibrating found, by capability: before and after, on scenes that nothing was fitted on."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from drivekd.errors import DataError
from drivekd.runtime.answers.confidence import Calibration, Measured, log_odds

from .curves import Bin, area_under, calibration_error, equal_mass_bins, error_by_chance, risk_coverage
from .fit import Bools, Floats, LogisticMap, check_finite, fit_map, threshold_for
from .judged import Judged, arrays

HEADER = (
    *("answers", "fitted on", "reported on", "accuracy", "ECE before", "ECE after", "by chance", "AURC before", "AURC after"),
    *("temperature", "threshold", "answered", "of these wrong"),
)


@dataclass(frozen=True)
class Goal:
    """risk: the share of given answers that may be wrong. bins: of the calibration error. least: answers that a half needs."""

    risk: float = 0.1
    bins: int = 15
    least: int = 50


@dataclass(frozen=True)
class Quality:
    """Of confidences on the reported half. bins: equal-mass; ece: over them; by_chance: what it would be if all were
    kept. points: (coverage, risk); aurc: below them."""

    ece: float
    by_chance: float
    aurc: float
    bins: list[Bin]
    points: list[tuple[float, float]]

    @classmethod
    def of(cls, confidence: Floats, right: Bools, num_bins: int) -> Quality:
        """[N] confidences and whether each answer is right."""
        bins, points = equal_mass_bins(confidence, right, num_bins), risk_coverage(confidence, right)
        return cls(calibration_error(bins), error_by_chance(bins), area_under(points), bins, points)


@dataclass(frozen=True)
class Row:
    """One kind of answers. before: exp(mean log-probability) taken for a confidence; after: the fitted map. coverage, risk: of
    the answers at or above the threshold; risk None where none is."""

    name: str
    fitted_on: int
    reported_on: int
    accuracy: float
    before: Quality
    after: Quality
    map: LogisticMap
    threshold: float
    coverage: float
    risk: float | None

    def cells(self) -> list[str]:
        """Under HEADER."""
        temperature = "infinite" if self.map.slope == 0 else f"{1 / self.map.slope:.3g}"
        numbers = (self.before.ece, self.after.ece, self.after.by_chance, self.before.aurc, self.after.aurc)
        return [
            *(self.name, str(self.fitted_on), str(self.reported_on), f"{self.accuracy:.3f}", *(f"{one:.3f}" for one in numbers)),
            *(temperature, f"{self.threshold:.3f}", f"{self.coverage:.1%}", "" if self.risk is None else f"{self.risk:.1%}"),
        ]

    def notes(self) -> list[str]:
        """What is odd about it."""
        if self.map.slope < 0:
            return [f"{self.name}: surer answers were less often right; look at the model before its confidence"]
        if self.map.slope == 0:
            return [f"{self.name}: the answers to fit on are all right, all wrong or all equally sure: one confidence for all"]
        return []

    def calibration(self, *, data: str, model: str, goal: Goal) -> Calibration:
        """As calibration.json has it. data, model: digests of the records and of what answered."""
        ece = self.after.ece
        measured = Measured(data, model, self.fitted_on, self.reported_on, goal.bins, self.before.ece, ece, goal.risk)
        return Calibration(self.map.slope, self.map.intercept, self.threshold, measured)

    def to_json(self) -> dict[str, Any]:
        """Everything, bins and curves too."""
        return asdict(self)


def calibrated_row(name: str, fitted: list[Judged], reported: list[Judged], goal: Goal) -> Row:
    """Fit on one half, report on the other. Raises DataError naming the numbers when a half has too few answers."""
    if min(len(fitted), len(reported)) < goal.least:
        raise DataError(
            f"{name}: {len(fitted)} answers to fit on and {len(reported)} in other scenes to report on; expected at least "
            f"{goal.least} each. Give more records, of more scenes"
        )
    logprobs, right = arrays(fitted)
    unseen, unseen_right = arrays(reported)
    check_finite(unseen)
    check_finite(logprobs)
    odds = log_odds(logprobs)
    found = fit_map(odds, right)
    threshold = threshold_for(found.confidence(odds), right, goal.risk)
    confidence = found.confidence(log_odds(unseen))
    given = confidence >= threshold
    return Row(
        name=name,
        fitted_on=len(fitted),
        reported_on=len(reported),
        accuracy=float(unseen_right.mean()),
        before=Quality.of(np.exp(unseen), unseen_right, goal.bins),
        after=Quality.of(confidence, unseen_right, goal.bins),
        map=found,
        threshold=threshold,
        coverage=float(given.mean()),
        risk=float((~unseen_right[given]).mean()) if given.any() else None,
    )


def pooled_cells(rows: list[Row], reported: list[list[Judged]], goal: Goal) -> list[str]:
    """A last row over all answers, each with its own capability's map: what one threshold for all would meet."""
    values = [arrays(part) for part in reported]
    right = np.concatenate([right for _, right in values])
    before = Quality.of(np.exp(np.concatenate([logprobs for logprobs, _ in values])), right, goal.bins)
    maps = [row.map.confidence(log_odds(logprobs)) for row, (logprobs, _) in zip(rows, values, strict=True)]
    after = Quality.of(np.concatenate(maps), right, goal.bins)
    numbers = (float(right.mean()), before.ece, after.ece, after.by_chance, before.aurc, after.aurc)
    assert all(map(math.isfinite, numbers))
    fitted = sum(row.fitted_on for row in rows)
    return ["all", str(fitted), str(len(right)), *(f"{one:.3f}" for one in numbers), "", "", "", ""]
