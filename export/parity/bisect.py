"""Which layer goes wrong first? Replays a golden image and prompt, layer by layer, against what the fp32 model computed.

The error of a layer is that of its worst probed row: ||found - expected|| / ||expected||. Rounding adds up and is amplified from
layer to layer, so a layer is judged by what it adds; independent errors add in squares. It is beyond tolerance when

    error² > STEP[precision]² + (GROWTH * error of the layer before)²

What comes behind the first such layer inherits its error and is not judged. NaN and infinity are beyond any tolerance. What to do
about it is said in words and as the option that does it. Imports no torch.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from drivekd.errors import BundleError
from drivekd.export.source.layer_values import (
    LAYERS_FILE,
    Floats,
    GraphValues,
    LayerValues,
    layer_values_from_bytes,
    probe_columns,
    probe_rows,
)
from drivekd.images import pixel_values
from drivekd.runtime.bundle.reader import Bundle, read_bundle
from drivekd.runtime.decoder.embedding import EMBEDDING_FILE, embedding_from_bytes
from drivekd.runtime.engine.runner import Feed
from drivekd.runtime.parity.golden import GOLDEN_FILE, load_golden

from .non_finite import NonFinite, first_non_finite, overflowing
from .probed_graph import layer_names, prefill_feeds, require_onnx, run_with_outputs

# Operators of norms and of softmax: their intermediate sums leave fp16 first (docs/design.md, "fp16 islands")
NORM_OPS = {"ReduceMean", "Pow", "Sqrt", "Reciprocal", "LayerNormalization", "SimplifiedLayerNormalization"}


NORM_OPS |= {"SkipSimplifiedLayerNormalization", "RMSNormalization", "ReduceSumSquare"}
SOFTMAX_OPS = {"Softmax", "Exp", "GroupQueryAttention", "Attention"}


def advice(graph: str, value: str, precision: str, fault: NonFinite | None) -> str:
    """A sentence about the first value beyond tolerance. fault: the node that gives NaN or infinity, if one does."""
    if graph == "embedding":
        return _about_embedding(precision)
    option = f"--set 'exclude=[{exclusion(value)}]'"
    if precision == "fp32":
        what = f"; node {fault.node} ({fault.op_type}) gives NaN or infinity" if fault else ""
        return (
            f"{graph} is fp32, so no rounding explains this: the graph computes something else than the model{what}. "
            "Another weight or operator than the checkpoint's: export again with this version, and report it if it stays"
        )
    if fault is not None:
        return f"{_island(fault, value, precision)}; export again with {option}"
    return f"{place(value)} loses too much in {precision}; leave it in higher precision: export again with {option}"


def exclusion(value: str) -> str:
    """The pattern of `exclude` for the MatMuls that make a value: "layers.7.output" -> "layers.7.*"."""
    if value.endswith(".output"):
        return f"{value.removesuffix('output')}*"
    return {"logits": "lm_head", "image_embeds": "projector.*"}[value]


def place(value: str) -> str:
    """A value in words."""
    if value.endswith(".output"):
        number = value.split(".")[-2]
        return f"{'vision layer' if value.startswith('vision.') else 'layer'} {number}"
    return {"logits": "the last norm or lm_head", "image_embeds": "the projector"}[value]


def _island(fault: NonFinite, value: str, precision: str) -> str:
    part = "norm" if fault.op_type in NORM_OPS else "softmax" if fault.op_type in SOFTMAX_OPS else None
    node = f"node {fault.node} ({fault.op_type}) gives NaN, infinity or more than 65,504, the largest fp16 number"
    if part is not None and precision == "fp16":
        return f"{part} of {place(value)} in fp32; {node}"
    return f"{place(value)} in fp32; {node}"


def _about_embedding(precision: str) -> str:
    if precision in ("fp32", "fp16"):
        return "embedding.safetensors does not hold the checkpoint's rows; export again with this version"
    return f"rows of the embedding lose too much in {precision}; export again with --set block=32 or in a higher precision"


HEADER = ["graph", "value", "error", "tolerance", ""]
EMBEDDING = "embedding"

# What one layer may add, as a share of its output. The largest additions measured in healthy graphs: with InternVL3-1B's widths
# (448 px, 4 + 8 layers, random weights) 7e-7, 2.3e-4, 0.033, 0.13; with the tiny models of test_bisect.py 1e-6, 2e-3, 0.11, 0.21.
STEP = {"fp32": 2e-5, "fp16": 1e-2, "int8": 0.15, "int4": 0.35}
GROWTH = 1.5
# The recorded rows are rounded to float16; blocks of 32 normal values lose 0.6 % in int8 and 9 % in int4.
EMBEDDING_TOLERANCE = {"fp32": 1e-3, "fp16": 1e-3, "int8": 0.02, "int4": 0.2}


@dataclass(frozen=True)
class LayerRow:
    """One value of one graph. error: relative, of the worst row. verdict: "ok", "BEYOND", "follows" behind the first beyond."""

    graph: str
    value: str
    precision: str
    error: float
    tolerance: float
    verdict: str


@dataclass(frozen=True)
class BisectReport:
    """rows: in the order of computation. suggestion: what helps against the first value beyond tolerance, "" when none is."""

    bundle: str
    rows: tuple[LayerRow, ...]
    suggestion: str

    @property
    def first(self) -> LayerRow | None:
        """The earliest value beyond its tolerance; None = none is."""
        return next((row for row in self.rows if row.verdict == "BEYOND"), None)

    @property
    def passed(self) -> bool:
        """Whether every value is within its tolerance."""
        return self.first is None

    @property
    def verdict(self) -> str:
        """What was found, for a person."""
        if self.first is None:
            return f"every one of {len(self.rows)} values is within its tolerance"
        row = self.first
        return f"{row.graph}: {row.value} is the first beyond tolerance: error {row.error:.2g}, at most {row.tolerance:.2g}"

    def table(self) -> list[list[str]]:
        """Rows under HEADER."""
        return [
            [row.graph, row.value, f"{row.error:.1e}", "" if row.verdict == "follows" else f"{row.tolerance:.1e}", row.verdict]
            for row in self.rows
        ]

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "first": None if self.first is None else asdict(self.first), "passed": self.passed}


def bisect_bundle(
    path: Path, *, threads: int | None = None, expect_digest: str | None = None, public_key: Path | None = None
) -> BisectReport:
    """Read and verify a bundle, and bisect it on onnxruntime's CPU. threads: of one operator, None = all cores.

    Raises UsageError (onnx is not installed), BundleError (changed, or exported without layers.npz), RunnerError.
    """
    require_onnx()
    return bisect(read_bundle(Path(path), expect_digest=expect_digest, public_key=public_key), threads=threads)


def bisect(bundle: Bundle, *, threads: int | None = None) -> BisectReport:
    """The same for a bundle in memory, such as one that is being exported and failed its parity."""
    require_onnx()
    for name in (LAYERS_FILE, GOLDEN_FILE):
        if name not in bundle.files:
            raise BundleError(f"{bundle.path}: {name} is missing, so there is nothing to compare layers with; export it again")
    expected = layer_values_from_bytes(bundle.files[LAYERS_FILE], str(bundle.path))
    rows = _vision_rows(bundle, expected, threads)
    rows += _embedding_rows(bundle, expected)
    for graph in bundle.manifest.graphs:
        if graph != "vision":
            rows += _decoder_rows(bundle, graph, expected, threads)
    first = next((row for row in rows if row.verdict == "BEYOND"), None)
    return BisectReport(bundle.digest, tuple(rows), "" if first is None else _suggestion(bundle, first, expected, threads))


def _suggestion(bundle: Bundle, first: LayerRow, expected: LayerValues, threads: int | None) -> str:
    fault = None
    if first.graph != EMBEDDING and not np.isfinite(first.error):
        feeds = vision_feeds(bundle) if first.graph == "vision" else decoder_feeds(bundle, first.graph, expected)
        fault = first_non_finite(bundle, first.graph, first.value, feeds, threads=threads)
    return advice(first.graph, first.value, first.precision, fault)


def _vision_rows(bundle: Bundle, expected: LayerValues, threads: int | None) -> list[LayerRow]:
    names = [*layer_names("vision", len(expected.vision.layers)), "image_embeds"]
    feeds = vision_feeds(bundle)
    found = run_with_outputs(bundle, "vision", feeds, names, threads=threads)
    errors = _errors(expected.vision, [probe_rows(found[name]) for name in names])
    return _judged(bundle, "vision", names, errors, overflowing(bundle, "vision", names, feeds, threads=threads))


def _embedding_rows(bundle: Bundle, expected: LayerValues) -> list[LayerRow]:
    """The prompt's text tokens, looked up as the runtime does."""
    spec = bundle.manifest.embedding
    table = embedding_from_bytes(bundle.files[EMBEDDING_FILE], spec, bundle.manifest.model, str(bundle.path))
    text = expected.input_ids >= 0
    error = relative_error(expected.inputs_embeds[text], table.rows(expected.input_ids[text]))
    tolerance = EMBEDDING_TOLERANCE[spec.precision]
    verdict = "ok" if error <= tolerance else "BEYOND"
    return [LayerRow(EMBEDDING, "rows of the prompt", spec.precision, error, tolerance, verdict)]


def _decoder_rows(bundle: Bundle, graph: str, expected: LayerValues, threads: int | None) -> list[LayerRow]:
    names = [*layer_names(graph, len(expected.decoder.layers)), "logits"]
    feeds = decoder_feeds(bundle, graph, expected)
    found = run_with_outputs(bundle, graph, feeds, names, threads=threads)
    errors = _errors(expected.decoder, [*(probe_rows(found[name]) for name in names[:-1]), probe_columns(found["logits"])])
    return _judged(bundle, graph, names, errors, overflowing(bundle, graph, names, feeds, threads=threads))


def vision_feeds(bundle: Bundle) -> dict[str, Feed]:
    """The first golden image as the vision graph reads it."""
    image = load_golden(bundle.files[GOLDEN_FILE], str(bundle.path))["images"][0]
    return {"pixel_values": pixel_values(image, bundle.manifest.images)[None]}


def decoder_feeds(bundle: Bundle, graph: str, expected: LayerValues) -> dict[str, Feed]:
    """The recorded prompt as a decoder reads it."""
    return prefill_feeds(bundle.manifest.graphs[graph], expected.inputs_embeds, expected.position_ids)


def _errors(expected: GraphValues, found: list[Floats]) -> list[float]:
    return [relative_error(*pair) for pair in zip([*expected.layers, expected.output], found, strict=True)]


def _judged(bundle: Bundle, graph: str, names: list[str], errors: list[float], overflow: str | None) -> list[LayerRow]:
    """overflow: the value within whose layer fp16 overflows."""
    told = [float("inf") if name == overflow else error for name, error in zip(names, errors, strict=True)]
    return judged_rows(graph, names, bundle.manifest.graphs[graph].precision, told)


def judged_rows(graph: str, names: list[str], precision: str, errors: list[float]) -> list[LayerRow]:
    """Rows with their verdicts from the errors of one graph's values, in order of computation."""
    rows, before, beyond = [], 0.0, False
    for name, error in zip(names, errors, strict=True):
        tolerance = math.hypot(STEP[precision], GROWTH * before)
        verdict = "follows" if beyond else "ok" if error <= tolerance else "BEYOND"
        rows.append(LayerRow(graph, name, precision, error, tolerance, verdict))
        beyond, before = beyond or verdict == "BEYOND", error
    return rows


def relative_error(expected: NDArray[np.float32], found: NDArray[np.float32]) -> float:
    """max over rows of ||found - expected|| / ||expected||; infinite when shapes differ or a value is not finite."""
    if expected.shape != found.shape or not np.isfinite(found).all():
        return float("inf")
    difference = np.linalg.norm(expected.astype(np.float64) - found, axis=-1)
    return float((difference / np.maximum(np.linalg.norm(expected.astype(np.float64), axis=-1), 1e-12)).max())
