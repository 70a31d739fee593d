"""fp16: a float32 graph becomes a float16 one with float32 islands, strongly typed.

Islands, because float16 ends at 65,504 and has 11 bits:
    norms           x² of a hidden state of 300 is beyond it: from the square to the quotient x / sqrt(mean(x²) + epsilon)
    softmax         with the mask added before it (its smallest float32 is -inf in float16, and softmax of -inf alone is NaN)
    angles          whatever is behind a Sin or Cos: positions times frequencies
    large numbers   a node with a constant or weight beyond 65,504

Inputs and outputs stay float32, apart from K/V: those lie in memory between calls and are float16.

onnxruntime.transformers.float16 does the same with casts around every node of a list; it knows islands by node name or operator
only, copies every weight through protobuf and needs shape inference, which stops at onnxruntime's own operators (so the element
types of all values are found here as well).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

import numpy as np
import onnx_ir as ir

from drivekd.export.lowering.nodes import NewNodes, initializer

from .matmuls import remove_unused_weights

BOOL_OPS = {"Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "And", "Or", "Not", "IsNaN", "IsInf"}
INT64_OPS = {"Shape", "Size", "ArgMax", "ArgMin", "NonZero"}
LIKE_INPUT = {"Where": 1, "DequantizeLinear": 1, "QuantizeLinear": 2}  # others are like their first input
ValueTypes = dict[ir.Value, ir.DataType]


def value_types(graph: ir.Graph) -> ValueTypes:
    """The type of each input, initializer and node output. Asserts that it has no subgraphs: our exporters make none."""
    types: ValueTypes = {}
    for value in (*graph.inputs, *graph.initializers.values()):
        assert value.dtype is not None, f"{value.name} has no type"
        types[value] = value.dtype
    for node in graph:
        assert all(attribute.type != ir.AttributeType.GRAPH for attribute in node.attributes.values()), (
            f"{node.name} has a subgraph"
        )
        found = _output_type(node, types)
        types.update(dict.fromkeys(node.outputs, found))
    return types


def _output_type(node: ir.Node, types: ValueTypes) -> ir.DataType:
    if node.op_type in BOOL_OPS:
        return ir.DataType.BOOL
    if node.op_type in INT64_OPS:
        return ir.DataType.INT64
    if node.op_type == "Cast":
        return ir.DataType(node.attributes["to"].as_int())
    if node.op_type in ("Constant", "ConstantOfShape"):
        value = node.attributes.get("value")
        return ir.DataType.FLOAT if value is None else value.as_tensor().dtype
    source = node.inputs[LIKE_INPUT.get(node.op_type, 0)]
    assert source is not None, f"{node.name}: {node.op_type} without its input"
    return types[source]


FLOAT, HALF = ir.DataType.FLOAT, ir.DataType.FLOAT16
LARGEST_HALF = 65504.0
KV_PREFIXES = ("past_key_values.", "present.")

NORMS = {"LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization", "SkipSimplifiedLayerNormalization"}
VARIANCE_STEPS = {"Add", "Sqrt", "Reciprocal"}  # from the mean of squares on; ends at the product or quotient with x
MASK_STEPS = {"Add", "Sub", "Mul", "Div", "Where", "Max", "Min", "Clip", "Reshape", "Unsqueeze", "Squeeze", "Expand", "Cast"}


def to_half(model: ir.Model, keep: Collection[str] = ()) -> None:
    """Turn the graph into float16 in place; nodes named in `keep` and the islands stay float32.

    Weights are converted while they are written. Values keep their names.
    """
    graph = model.graph
    types = value_types(graph)
    wide = float32_nodes(graph, types) | {node for node in graph if node.name in keep}
    casts = _Casts(graph)
    for value in graph.inputs:
        if value.name and value.name.startswith(KV_PREFIXES):
            value.type = ir.TensorType(HALF)
            types[value] = HALF
    for node in list(graph):
        _convert_node(node, FLOAT if node in wide else HALF, types, casts)
    for index, value in enumerate(graph.outputs):
        graph.outputs[index] = _stated_output(graph, value, types)
    remove_unused_weights(graph)


def float32_nodes(graph: ir.Graph, types: ValueTypes) -> set[ir.Node]:
    """The islands."""
    found: set[ir.Node] = set()
    for node in graph:
        if node.op_type in NORMS or _has_large_weight(node, types):
            found.add(node)
        elif node.op_type == "ReduceMean":
            found.update(_variance(node))
        elif node.op_type == "Softmax":
            found.update(_before(node, types, MASK_STEPS))
        elif node.op_type in ("Sin", "Cos"):
            found.update(_before(node, types, None))
    return found


def _variance(mean: ir.Node) -> Iterator[ir.Node]:
    """Square, mean, + epsilon, root, and the quotient (or product with the reciprocal)."""
    yield mean
    square = mean.inputs[0].producer() if mean.inputs[0] is not None else None
    if square is not None and square.op_type in ("Pow", "Mul"):
        yield square
    pending = list(mean.outputs[0].consumers())
    while pending:
        node = pending.pop()
        yield node
        if node.op_type in VARIANCE_STEPS:
            pending.extend(node.outputs[0].consumers())


def _before(node: ir.Node, types: ValueTypes, through: Collection[str] | None) -> Iterator[ir.Node]:
    """The node and the float nodes that it depends on, through these operators, None = all."""
    pending, seen = [node], {node}
    while pending:
        current = pending.pop()
        yield current
        for value in current.inputs:
            source = value.producer() if value is not None and types[value] == FLOAT else None
            if source is not None and source not in seen and (through is None or source.op_type in through):
                seen.add(source)
                pending.append(source)


def _has_large_weight(node: ir.Node, types: ValueTypes) -> bool:
    return any(value is not None and types[value] == FLOAT and _is_large(value) for value in node.inputs)


def _is_large(value: ir.Value) -> bool:
    if value.const_value is None:
        return False
    array = value.const_value.numpy()
    return array.size > 0 and max(float(array.max()), -float(array.min())) > LARGEST_HALF


class _Casts:
    """Each value in the other float type, made once."""

    def __init__(self, graph: ir.Graph) -> None:
        self._graph = graph
        self._made: dict[tuple[ir.Value, ir.DataType], ir.Value] = {}

    def of(self, value: ir.Value, wanted: ir.DataType, place: ir.Node) -> ir.Value:
        key = value, wanted
        if key not in self._made:
            weight = value.const_value is not None and wanted == HALF
            self._made[key] = _half_weight(self._graph, value) if weight else _cast(value, wanted, place)
        return self._made[key]


def _cast(value: ir.Value, wanted: ir.DataType, place: ir.Node) -> ir.Value:
    cast = NewNodes(place, "").one("Cast", [value], f"{value.name}.{wanted.name.lower()}", to=wanted.value)
    cast.type, cast.shape, cast.name = ir.TensorType(wanted), value.shape, f"{value.name}.{wanted.name.lower()}"
    return cast


def _half_weight(graph: ir.Graph, value: ir.Value) -> ir.Value:
    tensor, name = value.const_value, f"{value.name}.half"
    assert tensor is not None
    lazy = ir.LazyTensor(
        lambda: ir.tensor(tensor.numpy().astype(np.float16), name=name),
        dtype=HALF,
        shape=ir.Shape(tensor.shape.numpy()),
        name=name,
    )
    return initializer(graph, lazy)


def _convert_node(node: ir.Node, wanted: ir.DataType, types: ValueTypes, casts: _Casts) -> None:
    """Give a node its float inputs in one type; what it makes of them is of that type, too."""
    made = set(node.inputs) and {types[value] for value in node.inputs if value is not None} & {FLOAT, HALF}
    for index, value in enumerate(node.inputs):
        if value is not None and types[value] in (FLOAT, HALF) and types[value] != wanted:
            converted = casts.of(value, wanted, node)
            types[converted] = wanted
            node.replace_input_with(index, converted)
    if node.op_type == "Cast" or not made:
        return  # its output's type does not follow from its inputs'
    for value in node.outputs:
        if types[value] == FLOAT:
            types[value] = wanted
            value.type = ir.TensorType(wanted)


def _stated_output(graph: ir.Graph, value: ir.Value, types: ValueTypes) -> ir.Value:
    """The graph's output in the type that its name asks for; it keeps its name."""
    assert value.name is not None
    wanted = HALF if value.name.startswith(KV_PREFIXES) else FLOAT
    if types[value] not in (FLOAT, HALF) or types[value] == wanted:
        return value
    name = value.name
    value.name = f"{name}.{types[value].name.lower()}"
    node = ir.node("Cast", [value], {"to": wanted.value}, name=f"{name}.cast")
    graph.append(node)
    node.outputs[0].name, node.outputs[0].type, node.outputs[0].shape = name, ir.TensorType(wanted), value.shape
    return node.outputs[0]
