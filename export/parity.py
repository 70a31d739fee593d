"""The parity table: how far the exported graphs are from the model, worst first.

The limit of an output is atol x max(1, its largest magnitude): K of real Qwen2 layers reaches hundreds, where 1e-4 absolute is
below fp32's own rounding.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class ParityRow:
    """One output in one case.

    max_rel: max_abs over the reference's largest magnitude. argmax_agreement: share of tokens, ties left out.
    """

    graph: str
    case: str
    output: str
    max_abs: float
    max_rel: float
    limit: float
    argmax_agreement: float | None = None

    @property
    def passed(self) -> bool:
        # written so that NaN fails
        return self.max_abs <= self.limit and self.argmax_agreement in (None, 1.0)

    def to_json(self) -> dict[str, Any]:
        return {**{key: value for key, value in asdict(self).items() if value is not None}, "passed": self.passed}


@dataclass(frozen=True)
class ParityTable:
    """rows: worst first, by error over limit."""

    rows: tuple[ParityRow, ...]

    @property
    def passed(self) -> bool:
        return bool(self.rows) and all(row.passed for row in self.rows)

    def to_json(self) -> list[dict[str, Any]]:
        return [row.to_json() for row in self.rows]


def parity_table(rows: list[ParityRow]) -> ParityTable:
    """Sort rows: failed ones, then by error over limit."""
    return ParityTable(tuple(sorted(rows, key=lambda row: (row.passed, -_nan_as_inf(row.max_abs / row.limit)))))


def parity_row(
    graph: str,
    case: str,
    output: str,
    expected: NDArray[np.float32],
    found: NDArray[np.float32],
    atol: float,
    *,
    argmax_agreement: float | None = None,
) -> ParityRow:
    """Compare two arrays of one shape."""
    assert expected.shape == found.shape, f"{graph} {case} {output}: {expected.shape} against {found.shape}"
    scale = float(np.abs(expected).max())
    max_abs = float(np.abs(expected.astype(np.float64) - found).max())
    return ParityRow(graph, case, output, max_abs, max_abs / max(scale, 1e-12), atol * max(1.0, scale), argmax_agreement)


def _nan_as_inf(value: float) -> float:
    return float("inf") if np.isnan(value) else value
