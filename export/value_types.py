"""Element types of every value of a graph, from the types of its inputs and initializers.

onnx's own inference stops at onnxruntime's operators (GroupQueryAttention); the exporter's lowered nodes carry no types.
"""

from __future__ import annotations

import onnx_ir as ir

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
