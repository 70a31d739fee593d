"""The dialect `concat`: K/V grow by concatenation; standard operators alone, so that every engine runs it.

Query heads of one key head are folded into its rows, so K/V are never repeated:

    query [B, H, T, d] -> [B, K, G T, d];  scores [B, K, G T, S] -> [B, K, G, T, S] + bias [B, 1, 1, T, S]

B batch, H heads, K key/value heads, G = H / K, T new columns, P past, S = P + T, d head dim
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from .nodes import NewNodes, nodes_of, replace
from .norms import norms_to_standard
from .ops import CACHED_ATTENTION, DOMAIN, head_dim


@dataclass(frozen=True)
class _Shared:
    """What all layers use: cos and sin [B, 1, T, d / 2], bias [B, 1, 1, T, S], and the two shapes that scores take in turn."""

    cos: ir.Value
    sin: ir.Value
    bias: ir.Value
    split: ir.Value  # [B, K, G, T, S]
    folded: ir.Value  # [B, K, G T, S]


def attention_to_concat(model: ir.Model) -> tuple[ir.Model, bool]:
    """CachedAttention of packed projections -> standard operators."""
    attentions = list(nodes_of(model, DOMAIN, CACHED_ATTENTION))
    shared = _shared(attentions[0]) if attentions else None
    for node in attentions:
        assert shared is not None
        _lower(node, shared)
    return model, bool(attentions)


LOWER_TO_CONCAT = (attention_to_concat, norms_to_standard)


def _shared(node: ir.Node) -> _Shared:
    nodes = NewNodes(node, "attention")
    kv_heads = node.attributes["kv_num_heads"].as_int()
    groups = node.attributes["num_heads"].as_int() // kv_heads
    cos, sin, bias = node.inputs[5:]
    total = nodes.one("Shape", [bias], "total", start=3, end=4)  # [S]
    axis = nodes.integers(1)
    return _Shared(
        cos=nodes.one("Unsqueeze", [cos, axis], "cos"),
        sin=nodes.one("Unsqueeze", [sin, axis], "sin"),
        bias=nodes.one("Unsqueeze", [bias, axis], "bias"),
        split=nodes.one("Concat", [nodes.integers(0, kv_heads, groups, -1), total], "split_shape", axis=0),
        folded=nodes.one("Concat", [nodes.integers(0, kv_heads, -1), total], "folded_shape", axis=0),
    )


def _lower(node: ir.Node, shared: _Shared) -> None:
    nodes = NewNodes(node, f"layers.{node.attributes['layer'].as_int()}.self_attn")
    heads, kv_heads = (node.attributes[name].as_int() for name in ("num_heads", "kv_num_heads"))
    past_key, past_value = node.inputs[3:5]
    dim = head_dim(node)
    query, key, value = _heads(nodes, node.inputs[0], shared, heads, kv_heads, dim)
    present_key = nodes.one("Concat", [past_key, key], "present_key", axis=2)  # [B, K, S, d]
    present_value = nodes.one("Concat", [past_value, value], "present_value", axis=2)
    scale = nodes.constant(node.attributes["scale"].as_float())
    folded = nodes.one("Reshape", [nodes.one("Mul", [query, scale], "scaled"), nodes.integers(0, kv_heads, -1, dim)], "folded")
    weights = _weights(nodes, folded, present_key, shared)  # [B, K, G T, S]
    mixed = nodes.one("MatMul", [weights, present_value], "mixed")  # [B, K, G T, d]
    unfolded = nodes.one("Reshape", [mixed, nodes.integers(0, heads, -1, dim)], "unfolded")  # [B, H, T, d]
    rows = nodes.one("Transpose", [unfolded], "rows", perm=[0, 2, 1, 3])
    attended = nodes.one("Reshape", [rows, nodes.integers(0, 0, heads * dim)], "attended")  # [B, T, H d]
    replace(node, [attended, present_key, present_value])


def _heads(
    nodes: NewNodes, packed: ir.Value | None, shared: _Shared, heads: int, kv_heads: int, dim: int
) -> tuple[ir.Value, ir.Value, ir.Value]:
    """packed [B, T, (H + 2 K) d] -> rotated query [B, H, T, d] and key [B, K, T, d], and value [B, K, T, d]."""
    turning = heads + kv_heads
    joint, value = nodes.many(
        "Split", [packed, nodes.integers(turning * dim, kv_heads * dim)], "split_value", 2, axis=-1
    )  # query and key turn together
    rotated = _rotated(nodes, _by_head(nodes, joint, turning, dim, "joint"), shared, dim)
    query, key = nodes.many("Split", [rotated, nodes.integers(heads, kv_heads)], "split_key", 2, axis=1)
    return query, key, _by_head(nodes, value, kv_heads, dim, "value")


def _by_head(nodes: NewNodes, rows: ir.Value, heads: int, dim: int, name: str) -> ir.Value:
    """[B, T, heads * d] -> [B, heads, T, d]."""
    split = nodes.one("Reshape", [rows, nodes.integers(0, 0, heads, dim)], f"{name}_heads")
    return nodes.one("Transpose", [split], f"{name}_by_head", perm=[0, 2, 1, 3])


def _rotated(nodes: NewNodes, heads: ir.Value, shared: _Shared, dim: int) -> ir.Value:
    """The halves of each head [.., d] turn against each other: (x, y) -> (x cos - y sin, y cos + x sin). (arXiv 2104.09864)"""
    first, second = nodes.many("Split", [heads, nodes.integers(dim // 2, dim // 2)], "rotary_halves", 2, axis=-1)
    products = {
        (name, axis): nodes.one("Mul", [half, table], f"rotary_{name}_{axis}")
        for name, half in (("first", first), ("second", second))
        for axis, table in (("cos", shared.cos), ("sin", shared.sin))
    }
    turned = nodes.one("Sub", [products["first", "cos"], products["second", "sin"]], "rotary_sub")
    other = nodes.one("Add", [products["second", "cos"], products["first", "sin"]], "rotary_add")
    return nodes.one("Concat", [turned, other], "rotated", axis=-1)


def _weights(nodes: NewNodes, query: ir.Value, key: ir.Value, shared: _Shared) -> ir.Value:
    """query [B, K, G T, d], scaled; key [B, K, S, d] -> attention weights [B, K, G T, S]."""
    transposed = nodes.one("Transpose", [key], "key_transposed", perm=[0, 1, 3, 2])
    scores = nodes.one("MatMul", [query, transposed], "scores")
    split = nodes.one("Reshape", [scores, shared.split], "scores_split")
    weights = nodes.one("Softmax", [nodes.one("Add", [split, shared.bias], "masked")], "softmax", axis=-1)
    return nodes.one("Reshape", [weights, shared.folded], "weights")
