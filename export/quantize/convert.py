"""A float32 graph becomes one of another precision: a file in, a file out.

    fp16    half.py     all of it, with float32 islands
    int8    int8.py     the MatMuls of weights: weights and activations, static scales from calibration.py
    int4    int4.py     the MatMuls of weights: weights only

What is no MatMul with a weight (patch embedding, norms, attention's own products) stays float. Runs on graphs of any dialect:
nodes that carry the same name get the same bytes, so dialects can share their weights afterwards (shared_weights.py).
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias, get_args

import numpy as np
import onnx_ir as ir
from onnxscript import version_converter

from drivekd.errors import ExportError, UsageError
from drivekd.export.graphs.shared_weights import write_models
from drivekd.export.parity.limits import ATOL
from drivekd.export.source.quiet import quiet
from drivekd.runtime.bundle.manifest import PRECISIONS, GraphSpec, TensorSpec

from . import int4, int8
from .half import HALF, KV_PREFIXES, LARGEST_HALF, to_half
from .matmuls import check_finite, matching, remove_unused_weights, weight_array, weight_matmuls
from .ranges import Calibration

log = logging.getLogger(__name__)

Block: TypeAlias = Literal[32, 64, 128]
Activations: TypeAlias = Literal["fp32", "fp16"]
FORMS = ("qdq", "matmulnbits")
# The first opsets whose DequantizeLinear knows blocks of 4 bits, and float16 scales. Not higher than needed: with 21 onnxruntime
# 1.31 fails to load some int8 graphs ("output_dtype INT8 does not match y_zero_point type UINT8").
INT4_OPSET, HALF_INT8_OPSET = 21, 19


@dataclass(frozen=True)
class GraphPlan:
    """What a graph becomes. Raises UsageError on unknown words.

    block: weights that share an int4 scale. exclude: patterns of node names ("layers.0.*", "lm_head") that stay as they are.
    form: of int4, see int4.py. activations: between int8 and int4 MatMuls; fp16 converts the rest of the graph, too.
    The defaults are those of `drivekd export --set`, too: settings.py takes them from here.
    """

    precision: str
    block: Block = 32
    exclude: tuple[str, ...] = ()
    form: str = "qdq"
    activations: Activations = "fp32"

    def __post_init__(self) -> None:
        _check("precision", self.precision, PRECISIONS)
        _check("block", self.block, get_args(Block))
        _check("form", self.form, FORMS)
        _check("activations", self.activations, get_args(Activations))

    @property
    def half(self) -> bool:
        """Whether the float part of the graph becomes float16."""
        return self.precision == "fp16" or (self.precision != "fp32" and self.activations == "fp16")

    @property
    def smallest_scale(self) -> float:
        """A scale that is not 0 in the type of the activations."""
        return int4.SMALLEST_SCALE["fp16" if self.half else "fp32"]


def convert(spec: GraphSpec, folder: Path, out: Path, plan: GraphPlan, calibration: Calibration | None = None) -> GraphSpec:
    """Read folder/spec.file (float32) and write out/spec.file in the plan's precision; `out` is another folder.

    Weights that lay beside the graph lie beside it again, in out/<spec.file>.data. calibration: needed by int8.
    The returned spec's atol bounds max |found - fp32| / max(1, max |fp32|) of each output; it is there to catch wrong scales and
    layouts, whose errors are beyond 1, and says nothing about answers: an evaluation does.
    Raises ExportError: weights that are not finite, int8 without calibration.
    """
    assert folder.resolve() != out.resolve(), "weights would be read from the file that is being written"
    model = ir.load(folder / spec.file)
    excluded = apply_plan(model, plan, calibration)
    data_file = None if spec.data_file is None else f"{spec.file}.data"
    if data_file is None:
        ir.save(model, out / spec.file)
    else:
        write_models({spec.file: model}, out, data_file)
    return _converted_spec(spec, plan, data_file, excluded)


def apply_plan(model: ir.Model, plan: GraphPlan, calibration: Calibration | None = None, *, only: str = "*") -> tuple[str, ...]:
    """The same on a graph in memory; returns the names of the MatMuls of weights that were left as they are.

    only: a pattern; nodes that it does not match are left alone.
    """
    nodes = weight_matmuls(model.graph)
    left = _left([node.name or "" for node in nodes], plan, only)
    if plan.precision == "int4":
        left += _too_narrow([node for node in nodes if node.name not in left], plan.block)
    if plan.half:
        left += _too_large([node for node in nodes if node.name not in left])
    chosen = [node for node in nodes if node.name not in left]
    check_finite(chosen)
    if plan.precision == "int8":
        _apply_int8(chosen, calibration, plan.smallest_scale)
    elif plan.precision == "int4":
        _apply_int4(chosen, plan)
    if chosen and (plan.precision == "int4" or (plan.precision == "int8" and plan.half)):
        _raise_opset(model, plan)
    if plan.half:
        # what is excluded from int8 or int4 is float16; what is excluded from float16 is float32
        to_half(model, _left([node.name or "" for node in model.graph], plan, only) if plan.precision == "fp16" else ())
    remove_unused_weights(model.graph)
    return () if plan.precision == "fp32" else tuple(left)


def _left(names: Sequence[str], plan: GraphPlan, only: str) -> list[str]:
    wanted = set(matching([only], names)) - set(matching(plan.exclude, names))
    return [name for name in names if name not in wanted]


def _check(name: str, value: object, known: Sequence[object]) -> None:
    if value not in known:
        raise UsageError(f"{name} is {value!r}; expected one of {', '.join(map(str, known))}")


def _too_narrow(nodes: Sequence[ir.Node], block: int) -> list[str]:
    """MatMuls with fewer inputs than a block has: padding would make them larger, not smaller."""
    narrow = {node.name or "": len(weight_array(node)) for node in nodes if len(weight_array(node)) < block}
    for name, inputs in narrow.items():
        log.warning("%s stays float: its %d inputs are less than a block of %d", name, inputs, block)
    return list(narrow)


def _too_large(nodes: Sequence[ir.Node]) -> list[str]:
    """MatMuls with weights that float16 does not know; to_half leaves them float32."""
    large = [node.name or "" for node in nodes if LARGEST_HALF < np.abs(weight_array(node)).max() < np.inf]
    for name in large:
        log.warning("%s stays float32: it has weights beyond %g, the largest float16", name, LARGEST_HALF)
    return large


def _apply_int4(nodes: Sequence[ir.Node], plan: GraphPlan) -> None:
    by_weight: dict[ir.Value, list[ir.Node]] = {}
    for node in nodes:
        weight = node.inputs[1]
        assert weight is not None
        by_weight.setdefault(weight, []).append(node)
    for group in by_weight.values():
        (int4.use_dequantized if plan.form == "qdq" else int4.use_matmulnbits)(group, plan.block, plan.smallest_scale)


def _apply_int8(nodes: Sequence[ir.Node], calibration: Calibration | None, smallest: float) -> None:
    if calibration is None:
        raise ExportError(
            "int8 needs calibration: activations are scaled by what real camera samples reach; "
            "give --set calibration=RECORDS.json"
        )
    by_activation: dict[ir.Value, list[ir.Node]] = {}
    for node in nodes:
        activation = node.inputs[0]
        assert activation is not None
        by_activation.setdefault(activation, []).append(node)
    for group in by_activation.values():
        int8.use_int8(group, calibration.of(group[0].name or ""), smallest)


def _raise_opset(model: ir.Model, plan: GraphPlan) -> None:
    if plan.form == "matmulnbits" and plan.precision == "int4":
        model.graph.opset_imports["com.microsoft"] = 1
        return
    with quiet():
        version_converter.convert_version(model, INT4_OPSET if plan.precision == "int4" else HALF_INT8_OPSET)


def _converted_spec(spec: GraphSpec, plan: GraphPlan, data_file: str | None, excluded: tuple[str, ...]) -> GraphSpec:
    stated = dataclasses.replace(
        spec,
        data_file=data_file,
        atol=ATOL[plan.precision],
        precision=plan.precision,
        block=plan.block if plan.precision == "int4" else 0,
        excluded=excluded,
    )
    if not plan.half:
        return stated
    return dataclasses.replace(stated, inputs=_half_kv(spec.inputs), outputs=_half_kv(spec.outputs))


def _half_kv(tensors: Sequence[TensorSpec]) -> tuple[TensorSpec, ...]:
    name = HALF.name.lower()
    return tuple(dataclasses.replace(tensor, dtype=name) if tensor.name.startswith(KV_PREFIXES) else tensor for tensor in tensors)
