"""The parity table: how far the exported graphs are from the model, worst first.

The limit of an output is atol x max(1, its largest magnitude): K of real Qwen2 layers reaches hundreds, where 1e-4 absolute is
below fp32's own rounding. atol is the graph's, and each precision has its own: limits.py. In fp32 every token must agree, too.
In the others a single value may be far off by rounding alone, so the whole output is judged besides: its root mean square error
as a share of its root mean square. Two unrelated outputs have 1.4.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from drivekd.runtime.bundle.manifest import GraphSpec

from .limits import RMS_LIMITS


@dataclass(frozen=True)
class ParityRow:
    """One output in one case.

    max_rel: max_abs over the reference's largest magnitude. rms: root mean square error over the reference's. argmax_agreement:
    share of tokens, ties left out.
    """

    graph: str
    precision: str
    case: str
    output: str
    max_abs: float
    max_rel: float
    rms: float
    limit: float
    argmax_agreement: float | None = None

    @property
    def passed(self) -> bool:
        """Within the limit, and in fp32 with every token alike, else with an rms within RMS_LIMITS. NaN fails."""
        # written so that NaN fails
        if self.precision == "fp32":
            return self.max_abs <= self.limit and self.argmax_agreement in (None, 1.0)
        return self.max_abs <= self.limit and self.rms <= RMS_LIMITS[self.precision]

    def severity(self) -> tuple[bool, float]:
        """What rows are sorted by, the worst one largest: failed, then error over limit; NaN beyond everything."""
        ratio = self.max_abs / self.limit
        return not self.passed, float("inf") if np.isnan(ratio) else ratio

    def to_json(self) -> dict[str, Any]:
        return {**{key: value for key, value in asdict(self).items() if value is not None}, "passed": self.passed}


@dataclass(frozen=True)
class ParityTable:
    """rows: worst first, by error over limit."""

    rows: tuple[ParityRow, ...]

    @property
    def passed(self) -> bool:
        """Whether every row did, and there are some."""
        return bool(self.rows) and all(row.passed for row in self.rows)

    def to_json(self) -> list[dict[str, Any]]:
        return [row.to_json() for row in self.rows]


def parity_table(rows: Iterable[ParityRow]) -> ParityTable:
    """Sort rows: failed ones, then by error over limit."""
    return ParityTable(tuple(sorted(rows, key=ParityRow.severity, reverse=True)))


def parity_row(
    graph: str,
    spec: GraphSpec,
    case: str,
    output: str,
    expected: NDArray[np.float32],
    found: NDArray[np.floating[Any]],
    *,
    argmax_agreement: float | None = None,
) -> ParityRow:
    """Compare two arrays of one shape to the tolerance of a graph's spec."""
    assert expected.shape == found.shape, f"{graph} {case} {output}: {expected.shape} against {found.shape}"
    scale = float(np.abs(expected).max())
    max_abs = float(np.abs(expected.astype(np.float64) - found).max())
    limit = spec.atol * max(1.0, scale)
    relative = max_abs / max(scale, 1e-12)
    return ParityRow(
        graph, spec.precision, case, output, max_abs, relative, relative_error(expected, found), limit, argmax_agreement
    )


def relative_error(expected: NDArray[np.float32], found: NDArray[np.floating[Any]]) -> float:
    """||found - expected|| / ||expected||; infinite when `found` is not finite."""
    if not np.isfinite(found).all():
        return float("inf")
    wide = expected.astype(np.float64)
    return _norm(found - wide) / max(_norm(wide), 1e-12)


def _norm(values: NDArray[np.float64]) -> float:
    """numpy's own sum: np.linalg.norm asks BLAS, whose threads each sum a part, and the last bits follow their number."""
    return float(np.sqrt(np.square(values).sum()))
