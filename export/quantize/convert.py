"""A float32 graph becomes one of another precision: a file in, a file out.

    fp16    half.py     all of it, with float32 islands
    int8    blocks.py   the MatMuls of weights: weights alone, a scale for each block
            int8.py     with int8_inputs, where that holds: their inputs too, by static ranges of calibration.py
    int4    blocks.py   as int8, in 4 bits; some MatMuls in 8

What is no MatMul with a weight (patch embedding, norms, attention's own products) stays float. Runs on graphs of any dialect:
nodes that carry the same name get the same bytes, so dialects can share their weights afterwards (shared_weights.py).
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
import onnx_ir as ir
import torch
from onnxscript import version_converter

from drivekd.errors import ExportError, UsageError
from drivekd.export.graphs.shared_weights import write_models
from drivekd.export.parity.limits import ATOL
from drivekd.export.source.quiet import quiet
from drivekd.quantization.form import SMALLEST, SMALLEST_HALF, Quantized, WeightForm, quantized
from drivekd.quantization.linears import form_of, matching
from drivekd.runtime.bundle.manifest import PRECISIONS, GraphSpec, TensorSpec

from . import int8
from .blocks import use_blocks
from .half import HALF, KV_PREFIXES, LARGEST_HALF, to_half
from .matmuls import check_finite, remove_unused_weights, weight_array, weight_matmuls
from .ranges import Calibration

log = logging.getLogger(__name__)

Block: TypeAlias = Literal[32, 64, 128]
Activations: TypeAlias = Literal["fp32", "fp16"]
# The first opsets whose DequantizeLinear knows blocks, and float16 scales. Not higher than needed: with 21 onnxruntime 1.31 fails
# to load some graphs with int8 inputs ("output_dtype INT8 does not match y_zero_point type UINT8").
BLOCKS_OPSET, HALF_INT8_OPSET = 21, 19


@dataclass(frozen=True)
class GraphPlan:
    """What a graph becomes. Raises UsageError on unknown words.

    block: weights that share a scale. exclude: patterns of node names ("layers.0.*", "lm_head") that stay as they are. int8: of
    MatMuls that have 8 bits in a graph of int4. activations: between the MatMuls of weights; fp16 converts the rest of the graph,
    too. int8_inputs: those of int8 MatMuls are rounded as well, where calibration says that it holds.
    The defaults are those of `drivekd export --set`, too: settings.py takes them from here.
    """

    precision: str
    block: Block = 32
    exclude: tuple[str, ...] = ()
    int8: tuple[str, ...] = ()
    activations: Activations = "fp32"
    int8_inputs: bool = False

    def __post_init__(self) -> None:
        _check("precision", self.precision, PRECISIONS)
        _check("block", self.block, get_args(Block))
        _check("activations", self.activations, get_args(Activations))
        if self.int8_inputs and self.precision != "int8":
            raise UsageError(f"int8_inputs are of int8 graphs, this one is {self.precision}")

    @property
    def rounds_weights(self) -> bool:
        """Whether weights alone are rounded, in blocks."""
        return self.precision in ("int8", "int4") and not self.int8_inputs

    def form_of(self, name: str, inputs: int) -> WeightForm | None:
        """Of the weight of the MatMul `name` with so many inputs; None: it stays float."""
        if not self.rounds_weights:
            return None
        main = WeightForm(8 if self.precision == "int8" else 4, self.block)
        return form_of(name, inputs, main, exclude=self.exclude, int8=self.int8)

    @property
    def half(self) -> bool:
        """Whether the float part of the graph becomes float16."""
        return self.precision == "fp16" or (self.precision != "fp32" and self.activations == "fp16")

    @property
    def smallest_scale(self) -> float:
        """A scale that is not 0 in the type of the activations."""
        return SMALLEST_HALF if self.half else SMALLEST


def convert(
    spec: GraphSpec,
    folder: Path,
    out: Path,
    plan: GraphPlan,
    weights: Mapping[str, Quantized] = MappingProxyType({}),
    calibration: Calibration | None = None,
) -> GraphSpec:
    """Read folder/spec.file (float32) and write out/spec.file in the plan's precision; `out` is another folder.

    Weights that lay beside the graph lie beside it again, in out/<spec.file>.data. weights: of MatMuls, by name, that were
    rounded before; the others are rounded to the nearest. calibration: needed by int8_inputs.
    The returned spec's atol bounds max |found - expected| / max(1, max |expected|) of each output, where expected is the model
    with these weights; it says nothing about answers: an evaluation does.
    Raises ExportError: weights that are not finite, int8_inputs without calibration.
    """
    assert folder.resolve() != out.resolve(), "weights would be read from the file that is being written"
    model = ir.load(folder / spec.file)
    sizes = {node.name or "": weight_array(node).shape for node in weight_matmuls(model.graph)}
    excluded = apply_plan(model, plan, weights, calibration)
    data_file = None if spec.data_file is None else f"{spec.file}.data"
    if data_file is None:
        ir.save(model, out / spec.file)
    else:
        write_models({spec.file: model}, out, data_file)
    return dataclasses.replace(_converted_spec(spec, plan, data_file, excluded), **_stated_bits(sizes, excluded, plan))


def apply_plan(
    model: ir.Model,
    plan: GraphPlan,
    weights: Mapping[str, Quantized] = MappingProxyType({}),
    calibration: Calibration | None = None,
    *,
    only: str = "*",
) -> tuple[str, ...]:
    """The same on a graph in memory; returns the names of the MatMuls of weights that were left as they are.

    only: a pattern; nodes that it does not match are left alone.
    """
    nodes = weight_matmuls(model.graph)
    left = _left([node.name or "" for node in nodes], plan, only)
    if plan.rounds_weights:
        left += _too_narrow([node for node in nodes if node.name not in left], plan.block)
    if plan.half:
        left += _too_large([node for node in nodes if node.name not in left])
    chosen = [node for node in nodes if node.name not in left]
    check_finite(chosen)
    if plan.rounds_weights:
        _apply_blocks(chosen, plan, weights)
    elif plan.int8_inputs:
        left += _apply_int8_inputs(chosen, calibration, plan.smallest_scale)
    if chosen and (plan.rounds_weights or (plan.int8_inputs and plan.half)):
        with quiet():
            version_converter.convert_version(model, BLOCKS_OPSET if plan.rounds_weights else HALF_INT8_OPSET)
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


def _apply_blocks(nodes: Sequence[ir.Node], plan: GraphPlan, weights: Mapping[str, Quantized]) -> None:
    by_weight: dict[ir.Value, list[ir.Node]] = {}
    for node in nodes:
        weight = node.inputs[1]
        assert weight is not None
        by_weight.setdefault(weight, []).append(node)
    for group in by_weight.values():
        name = group[0].name or ""
        use_blocks(group, weights[name] if name in weights else _to_nearest(group[0], plan), half=plan.half)


def _to_nearest(node: ir.Node, plan: GraphPlan) -> Quantized:
    array = weight_array(node)
    form = plan.form_of(node.name or "", len(array))
    assert form is not None
    return quantized(torch.from_numpy(np.array(array.T, np.float32)), form, half=plan.half)


def _apply_int8_inputs(nodes: Sequence[ir.Node], calibration: Calibration | None, smallest: float) -> list[str]:
    """Names of those that stay float, because rounding their inputs would cost too much."""
    if calibration is None:
        raise ExportError(
            "int8_inputs need calibration: they are scaled by what real camera samples reach; give --set calibration=RECORDS.json"
        )
    by_activation: dict[ir.Value, list[ir.Node]] = {}
    for node in nodes:
        activation = node.inputs[0]
        assert activation is not None
        by_activation.setdefault(activation, []).append(node)
    left: list[str] = []
    for group in by_activation.values():
        names = [node.name or "" for node in group]
        if not int8.use_int8(group, calibration.of(names[0]), smallest):
            log.warning("%s stays float: its inputs have channels too large for int8", ", ".join(names))
            left += names
    return left


def _stated_bits(sizes: Mapping[str, tuple[int, ...]], excluded: Sequence[str], plan: GraphPlan) -> dict[str, Any]:
    """What the spec says of bits. sizes: [in, out] by MatMul."""
    forms = {name: plan.form_of(name, shape[0]) for name, shape in sizes.items()}
    plain = 16.0 if plan.half else 32.0
    each = {name: plain if name in excluded else _bits(form, sizes[name][0], plan) for name, form in forms.items()}
    total = sum(bits * sizes[name][0] * sizes[name][1] for name, bits in each.items())
    weights = sum(inputs * outputs for inputs, outputs in sizes.values())
    wide = tuple(name for name, form in forms.items() if form is not None and form.bits == 8)
    return {"bits": round(total / weights, 3) if weights else 0.0, "int8": wide if plan.precision == "int4" else ()}


def _bits(form: WeightForm | None, inputs: int, plan: GraphPlan) -> float:
    """Of a MatMul's weight, scales counted."""
    if form is not None:
        return form.bits_per_weight(inputs)
    if plan.int8_inputs:
        return 8 + 32 / inputs
    return 16.0 if plan.half else 32.0


def _converted_spec(spec: GraphSpec, plan: GraphPlan, data_file: str | None, excluded: tuple[str, ...]) -> GraphSpec:
    stated = dataclasses.replace(
        spec,
        data_file=data_file,
        atol=ATOL[plan.precision],
        precision=plan.precision,
        block=plan.block if plan.rounds_weights else 0,
        excluded=excluded,
    )
    if not plan.half:
        return stated
    return dataclasses.replace(stated, inputs=_half_kv(spec.inputs), outputs=_half_kv(spec.outputs))


def _half_kv(tensors: Sequence[TensorSpec]) -> tuple[TensorSpec, ...]:
    name = HALF.name.lower()
    return tuple(dataclasses.replace(tensor, dtype=name) if tensor.name.startswith(KV_PREFIXES) else tensor for tensor in tensors)
