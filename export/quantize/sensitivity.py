"""Which layers lose most when they are quantized: each alone, by what it does to the graph's output.

    error = ||found - float32|| / ||float32|| of the first output (logits, image_embeds), the worst of the feeds

Layers first; then, inside the worst of them, each MatMul. Every row is a graph of its own, converted as the plan says
(activations too) and run: slower than a formula, but nothing is left out of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from types import MappingProxyType
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
from numpy.typing import NDArray

from drivekd.export.parity.table import relative_error
from drivekd.quantization.form import Quantized
from drivekd.quantization.linears import matching
from drivekd.runtime.bundle.manifest import GraphSpec

from .convert import GraphPlan, apply_plan
from .matmuls import weight_array, weight_matmuls
from .ranges import Calibration, Feeds

HEADER = ["graph", "quantized alone", "error", "share of weights"]
NUM_DETAILED = 3  # layers whose MatMuls get rows of their own
OUTSTANDING = 3.0  # times the median of the layers
MOST = 0.7

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class SensitivityRow:
    """pattern: the MatMuls that were quantized, alone. error: see above. share: of all weights of MatMuls in the graph."""

    graph: str
    pattern: str
    is_layer: bool
    error: float
    share: float


@dataclass(frozen=True)
class SensitivityReport:
    """rows: worst first."""

    precision: str
    rows: tuple[SensitivityRow, ...]

    def table(self) -> list[list[str]]:
        """Rows under HEADER."""
        return [[row.graph, row.pattern, f"{row.error:.2e}", f"{row.share:.1%}"] for row in self.rows]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def sensitivity(graph: str, trials: Trials, *, num_detailed: int = NUM_DETAILED) -> SensitivityReport:
    """Judge a graph, called `graph` in the rows.

    MatMuls that the plan excludes are left out. Raises ExportError as convert does.
    """
    groups = layer_groups(list(trials.shares))
    rows = [trials.row(graph, pattern, is_layer=True) for pattern in groups]
    for row in sorted(rows, key=lambda row: -row.error)[:num_detailed]:
        names = groups[row.pattern]
        if len(names) > 1:
            rows.extend(trials.row(graph, name, is_layer=False) for name in names)
    return SensitivityReport(trials.plan.precision, tuple(sorted(rows, key=lambda row: -row.error)))


def suggested_exclusions(report: SensitivityReport, budget: float) -> list[str]:
    """Patterns for `exclude`, worst first: layers that stand out, or the one MatMul that makes them stand out.

    Together they hold at most `budget` (0..1) of the graph's weights. Empty when no layer stands out from the median: then
    excluding one buys no more than excluding another, and smaller blocks or another precision are what helps.
    """
    layers = [row for row in report.rows if row.is_layer]
    typical = median(row.error for row in layers) if layers else 0.0
    chosen: list[str] = []
    for layer in layers:
        if layer.error <= OUTSTANDING * typical:
            break
        row = next((row for row in report.rows if _explains(row, layer)), layer)
        if row.share <= budget:
            budget -= row.share
            chosen.append(row.pattern)
    return chosen


def _explains(row: SensitivityRow, layer: SensitivityRow) -> bool:
    """Whether one MatMul alone is most of a layer's error."""
    return not row.is_layer and bool(matching([layer.pattern], [row.pattern])) and row.error >= MOST * layer.error


def layer_groups(names: Sequence[str]) -> dict[str, list[str]]:
    """MatMul names by layer: "layers.3.mlp.up_proj" belongs to "layers.3.*"; those of no layer are their own group."""
    groups: dict[str, list[str]] = {}
    for name in names:
        before, found, after = name.partition("layers.")
        pattern = f"{before}layers.{after.partition('.')[0]}.*" if found else name
        groups.setdefault(pattern, []).append(name)
    return groups


class Trials:
    """Runs of folder/spec.file (float32) with some of its nodes quantized under a plan.

    feeds: a few; each row runs all of them. weights: as convert takes them. shares: of all weights of MatMuls, by MatMul that is
    not excluded.
    """

    def __init__(
        self,
        spec: GraphSpec,
        folder: Path,
        plan: GraphPlan,
        feeds: Sequence[Feeds],
        weights: Mapping[str, Quantized] = MappingProxyType({}),
        calibration: Calibration | None = None,
    ) -> None:
        self._spec, self._folder, self.plan, self._feeds, self._calibration = spec, folder, plan, feeds, calibration
        self._weights = weights
        self._model = ir.load(folder / spec.file)
        sizes = {node.name or "": weight_array(node).size for node in weight_matmuls(self._model.graph)}
        left = matching(plan.exclude, list(sizes))
        self.shares = {name: size / sum(sizes.values()) for name, size in sizes.items() if name not in left}
        self._expected = self._outputs(self._model)

    def row(self, graph: str, pattern: str, *, is_layer: bool) -> SensitivityRow:
        """Quantize the nodes that match the pattern, alone."""
        model = self._model.clone()  # weights are shared
        apply_plan(model, self.plan, self._weights, self._calibration, only=pattern)
        error = max(map(relative_error, self._expected, self._outputs(model)))
        share = sum(self.shares[name] for name in matching([pattern], self.shares))
        return SensitivityRow(graph, pattern, is_layer, error, share)

    def _outputs(self, model: ir.Model) -> list[Floats]:
        """The first output for each of the feeds."""
        path = self._folder / f"{self._spec.file}.trial"  # beside the graph: its weights are read from there
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # errors
        options.add_session_config_entry("session.disable_prepacking", "1")  # a session runs a few times only
        try:
            ir.save(model, path)
            session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        finally:
            path.unlink(missing_ok=True)
        types = {value.name: np.float16 for value in session.get_inputs() if value.type == "tensor(float16)"}
        cast = [{name: array.astype(types.get(name, array.dtype)) for name, array in feed.items()} for feed in self._feeds]
        return [session.run([self._spec.outputs[0].name], feed)[0] for feed in cast]
