"""RMSNorm becomes operators that engines have."""

from __future__ import annotations

import onnx_ir as ir

from .nodes import NewNodes, nodes_of, replace, weight_of
from .ops import DOMAIN, RMS_NORM


def norms_to_standard(model: ir.Model) -> tuple[ir.Model, bool]:
    """RMSNorm -> x / sqrt(mean(x²) + epsilon) * weight, in the form that onnxruntime and TensorRT recognise as one kernel."""
    changed = False
    for node in nodes_of(model, DOMAIN, RMS_NORM):
        hidden, weight = node.inputs
        nodes = NewNodes(node, weight_of(node) or "norm")
        squares = nodes.one("Pow", [hidden, nodes.constant(2)], "squares")
        mean = nodes.one("ReduceMean", [squares, nodes.integers(-1)], "variance", keepdims=1)
        small = nodes.constant(node.attributes["epsilon"].as_float())
        root = nodes.one("Sqrt", [nodes.one("Add", [mean, small], "add")], "sqrt")
        normed = nodes.one("Div", [hidden, root], "div")
        replace(node, [nodes.one("Mul", [normed, weight], "mul")])
        changed = True
    return model, changed


def norms_to_ort(model: ir.Model) -> tuple[ir.Model, bool]:
    """RMSNorm -> onnxruntime's SimplifiedLayerNormalization; with the addition before it, SkipSimplifiedLayerNormalization."""
    changed = False
    for node in nodes_of(model, DOMAIN, RMS_NORM):
        hidden, weight = node.inputs
        assert hidden is not None
        nodes, epsilon = NewNodes(node, weight_of(node) or "norm"), node.attributes["epsilon"].as_float()
        addition = _addition(hidden)
        if addition is None:
            normed = nodes.one("SimplifiedLayerNormalization", [hidden, weight], "norm", epsilon=epsilon, axis=-1, stash_type=1)
            replace(node, [normed])
        else:
            inputs = [*addition.inputs, weight]
            normed, mean, deviation, total = nodes.many(
                "SkipSimplifiedLayerNormalization", inputs, "norm", 4, domain="com.microsoft", epsilon=epsilon
            )
            mean.name = deviation.name = ""  # of no use: so it says in ONNX
            replace(node, [normed])
            replace(addition, [total])
        changed = True
    return model, changed


def _addition(value: ir.Value) -> ir.Node | None:
    """The node that adds two hidden states to `value`; nothing may need the sum before the norm does."""
    node = value.producer()
    if node is None or node.op_type != "Add" or any(source is None or source.is_initializer() for source in node.inputs):
        return None
    return node
