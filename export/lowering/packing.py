"""Projections of one value as one: one read of the hidden states, one matrix product where a layer had three, or two.

CachedAttention(x Wq + bq, x Wk + bk, x Wv + bv, ...) -> CachedAttention(x [Wq Wk Wv] + [bq bk bv], -, -, ...)
x Wgate, x Wup                                        -> Split(x [Wgate Wup])
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir
import torch
from onnx_ir.tensor_adapters import TorchTensor

from .nodes import NewNodes, initializer, nodes_of, replace
from .ops import CACHED_ATTENTION, DOMAIN
from .passes import as_torch

QKV_PARTS, QKV = ("q_proj", "k_proj", "v_proj"), "qkv_proj"
MLP_PARTS, MLP = ("gate_proj", "up_proj"), "gate_up_proj"


def pack_projections(model: ir.Model) -> tuple[ir.Model, bool]:
    """qkv_proj and gate_up_proj in each decoder layer. Weights are joined when they are written, not before."""
    changed = False
    for node in nodes_of(model, DOMAIN, CACHED_ATTENTION):
        if node.inputs[1] is None:
            continue
        number = node.attributes["layer"].as_int()
        prefix = f"layers.{number}.self_attn"
        for index, value in enumerate((_packed(model.graph, node, prefix), None, None)):
            node.replace_input_with(index, value)
        _pack_mlp(model.graph, f"layers.{number}.mlp")
        changed = True
    return model, changed


def _pack_mlp(graph: ir.Graph, prefix: str) -> None:
    names = [f"{prefix}.{part}.weight" for part in MLP_PARTS]
    gate, up = (_consumer(graph.initializers[name]) for name in names)
    assert gate.inputs[0] is up.inputs[0], f"{prefix}: gate and up are projections of one value"
    nodes = NewNodes(gate, prefix)
    weight = _joined(graph, names, f"{prefix}.{MLP}.weight")
    both = nodes.one("MatMul", [gate.inputs[0], weight], MLP)  # [B, T, 2 F]
    widths = [int(node.inputs[1].shape[1]) for node in (gate, up)]  # type: ignore[union-attr,index,arg-type]
    halves = nodes.many("Split", [both, nodes.integers(*widths)], f"{MLP}.split", 2, axis=-1)
    for node, half in zip((gate, up), halves, strict=True):
        replace(node, [half])


def _consumer(weight: ir.Value) -> ir.Node:
    (node,) = weight.consumers()
    assert node.op_type == "MatMul"
    return node


def _packed(graph: ir.Graph, node: ir.Node, prefix: str) -> ir.Value:
    sources = {_matmul(value).inputs[0] for value in node.inputs[:3]}
    assert len(sources) == 1, f"{prefix}: query, key and value are projections of one value"
    nodes = NewNodes(node, prefix)
    weight = _joined(graph, [f"{prefix}.{part}.weight" for part in QKV_PARTS], f"{prefix}.{QKV}.weight")
    projected = nodes.one("MatMul", [*sources, weight], QKV)  # [B, T, (H + 2 K) d]
    biases = [f"{prefix}.{part}.bias" for part in QKV_PARTS]
    if biases[0] not in graph.initializers:
        return projected
    return nodes.one("Add", [projected, _joined(graph, biases, f"{prefix}.{QKV}.bias")], f"{QKV}.add")


def _matmul(value: ir.Value | None) -> ir.Node:
    node = value.producer() if value is not None else None
    while node is not None and node.op_type == "Add":
        node = node.inputs[0].producer() if node.inputs[0] is not None else None
    assert node is not None and node.op_type == "MatMul"
    return node


def _joined(graph: ir.Graph, names: Sequence[str], name: str) -> ir.Value:
    """The weights side by side, [in, sum of outs], or biases [sum of outs]."""
    tensors = [graph.initializers[part].const_value for part in names]
    sources = [as_torch(tensor) for tensor in tensors if tensor is not None]
    shape = [*sources[0].shape[:-1], sum(source.shape[-1] for source in sources)]
    lazy = ir.LazyTensor(
        lambda: TorchTensor(torch.cat(sources, dim=-1), name=name), dtype=ir.DataType.FLOAT, shape=ir.Shape(shape), name=name
    )
    return initializer(graph, lazy)
