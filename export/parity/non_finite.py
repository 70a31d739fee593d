"""NaN, infinity and values that fp16 cannot hold: in which layer, and which node gives them first.

onnxruntime's CPU computes most of a float16 graph in float32 and leaves out the casts between, so a value beyond 65,504 stays
finite here and becomes infinity in a car. Every float16 value's magnitude is therefore compared with what fp16 holds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from drivekd.runtime.bundle.reader import Bundle
from drivekd.runtime.engine.runner import Feed

from .probed_graph import load_graph, run_with_outputs

if TYPE_CHECKING:
    import onnx

HALF_LIMIT = 65_520  # from here float16 rounds to infinity; its largest number is 65,504


@dataclass(frozen=True)
class NonFinite:
    """The first node whose output is not finite, or would not be in fp16; by the name of its output when it has none."""

    node: str
    op_type: str


def overflowing(bundle: Bundle, graph: str, values: Sequence[str], feeds: dict[str, Feed], *, threads: int | None) -> str | None:
    """The first of `values` (layers' outputs, in order) within whose layer a float16 value is beyond HALF_LIMIT; None = none is.

    Runs the graph once more, when it has float16 values at all.
    """
    model = load_graph(bundle, graph)
    half = _half_values(model)
    if not half:
        return None
    peaks = run_with_outputs(bundle, graph, feeds, half, threads=threads, peaks=True)
    beyond = {name for name in half if peaks[name] >= HALF_LIMIT}
    return next((value for value in values if beyond & set(values_of_layer(model, value))), None)


def first_non_finite(bundle: Bundle, graph: str, value: str, feeds: dict[str, Feed], *, threads: int | None) -> NonFinite | None:
    """The first node on the way to `value` that gives NaN, infinity or too much for fp16; None when none does.

    Runs the graph once more with every value of that layer as an output.
    """
    model = load_graph(bundle, graph)
    values, half = values_of_layer(model, value), set(_half_values(model))
    found = run_with_outputs(bundle, graph, feeds, list(values), threads=threads)
    for name, node in values.items():
        limit = HALF_LIMIT if name in half else np.inf
        if not (np.abs(found[name]) < limit).all():  # written so that NaN counts
            return NonFinite(node.name or name, node.op_type)
    return None


def _half_values(model: onnx.ModelProto) -> list[str]:
    """The float16 values that a node computes with; a mask whose shape alone is asked may be as large as it likes."""
    from onnx import TensorProto

    stated = {value.name for value in model.graph.value_info if value.type.tensor_type.elem_type == TensorProto.FLOAT16}
    used = {name for node in model.graph.node if node.op_type != "Shape" for name in node.input}
    return [name for node in model.graph.node for name in node.output if name in stated & used]


def values_of_layer(model: onnx.ModelProto, value: str) -> dict[str, onnx.NodeProto]:
    """The values between the layer before and `value`, which is the last, with the nodes that give them, in the graph's order.

    A fused norm gives the layer before's output as well as this layer's first value, so the node in front belongs to the layer.
    """
    producers = {name: index for index, node in enumerate(model.graph.node) for name in node.output}
    start = _output_before(producers, value)
    first = producers[start] if start else 0
    reached = {start or model.graph.input[0].name}
    between: dict[str, onnx.NodeProto] = {}
    for index, node in enumerate(model.graph.node[: producers[value] + 1]):  # ONNX graphs are sorted
        if index < first or not (reached & set(node.input) or start in node.output):
            continue
        names = [value] if value in node.output else [name for name in node.output if name]
        reached |= set(names)
        between.update(dict.fromkeys(names, node))
    return between


def _output_before(producers: dict[str, int], value: str) -> str | None:
    """The last layer's output in front of `value`; None in the first layer."""
    outputs = [name for name in producers if name.endswith(".output") and producers[name] < producers[value]]
    return max(outputs, key=producers.__getitem__) if outputs else None
