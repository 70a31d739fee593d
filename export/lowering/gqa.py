"""The dialect `gqa`: K/V lie in buffers of fixed capacity; onnxruntime's GroupQueryAttention writes into them in place.

What a row has read is told by numbers (seqlens_k, total_sequence_length) instead of a mask. With one rotary axis the operator
rotates by itself, from tables over positions. RotaryEmbedding rotates before it where it cannot: with three axes, whose positions
come from outside, and with heads of an odd width.

B batch, T new columns, H heads, K key/value heads, d head dim
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from .nodes import NewNodes, nodes_of, replace
from .norms import norms_to_ort
from .ops import CACHED_ATTENTION, DOMAIN, head_dim
from .passes import remove_unused

ORT = "com.microsoft"
LENGTHS = ("seqlens_k", "total_sequence_length")
INSIDE_STEP = 16  # of the head's width: "head_size shall be a multiple of 16" (onnxruntime 1.31, with do_rotary = 1)
REPLACED = ("attention_mask", "position_ids")  # inputs that go when nothing uses them


@dataclass(frozen=True)
class _Rotary:
    """cos, sin: [positions, d / 2]. rows: each new token's row of them, [B, T]; None: the operator counts by itself."""

    cos: ir.Value
    sin: ir.Value
    rows: ir.Value | None


def attention_to_gqa(model: ir.Model) -> tuple[ir.Model, bool]:
    """CachedAttention of packed projections -> GroupQueryAttention; inputs seqlens_k and total_sequence_length come in."""
    attentions = list(nodes_of(model, DOMAIN, CACHED_ATTENTION))
    if not attentions:
        return model, False
    lengths = [ir.Value(name=name, type=ir.TensorType(ir.DataType.INT32)) for name in LENGTHS]
    model.graph.inputs[1:1] = lengths
    model.graph.opset_imports[ORT] = 1
    rotary = _rotary(attentions[0], lengths[0])
    for node in attentions:
        _lower(node, lengths, rotary)
    return model, True


def drop_replaced_inputs(model: ir.Model) -> tuple[ir.Model, bool]:
    """The input attention_mask goes, and position_ids where the operator rotates: wherever nothing uses them any more."""
    kept = [value for value in model.graph.inputs if value.uses() or value.name not in REPLACED]
    changed = len(kept) < len(model.graph.inputs)
    model.graph.inputs[:] = kept
    return model, changed


LOWER_TO_GQA = (attention_to_gqa, norms_to_ort, remove_unused, drop_replaced_inputs)


def _rotary(node: ir.Node, seqlens: ir.Value) -> _Rotary:
    cos, sin = node.inputs[5:7]
    assert cos is not None and sin is not None
    tables = [table for table in map(_table, (cos, sin)) if table is not None]
    nodes, width = NewNodes(node, "rotary"), head_dim(node)
    if len(tables) == 2:
        return _Rotary(tables[0], tables[1], None if width % INSIDE_STEP == 0 else _text_rows(nodes, node, seqlens))
    shape = nodes.one("Shape", [cos], "shape", start=0, end=2)  # [B, T]
    count = nodes.one("ReduceProd", [shape, nodes.integers(0)], "count", keepdims=0)
    rows = nodes.one("Reshape", [_counted(nodes, count), shape], "rows")
    flat = [nodes.one("Reshape", [value, nodes.integers(-1, width // 2)], name) for value, name in ((cos, "cos"), (sin, "sin"))]
    return _Rotary(flat[0], flat[1], rows)


def _text_rows(nodes: NewNodes, node: ir.Node, seqlens: ir.Value) -> ir.Value:
    """Positions [B, T] of tokens that end at seqlens_k [B]: seqlens_k - (T - 1), ..., seqlens_k."""
    last = nodes.one("Unsqueeze", [nodes.one("Cast", [seqlens], "last", to=ir.DataType.INT64.value), nodes.integers(1)], "column")
    length = nodes.one("Squeeze", [nodes.one("Shape", [node.inputs[0]], "length", start=1, end=2)], "scalar")
    behind = nodes.one(
        "Sub", [_counted(nodes, length), nodes.one("Sub", [length, nodes.constant(1, np.int64)], "before")], "steps"
    )
    return nodes.one("Add", [last, behind], "rows")


def _counted(nodes: NewNodes, count: ir.Value) -> ir.Value:
    """0 .. count - 1."""
    return nodes.one("Range", [nodes.constant(0, np.int64), count, nodes.constant(1, np.int64)], "range")


def _table(value: ir.Value) -> ir.Value | None:
    """The table over positions that `value` is taken from."""
    node = value.producer()
    if node is None or node.op_type != "Gather" or node.inputs[0] is None or not node.inputs[0].is_initializer():
        return None
    return node.inputs[0]


def _lower(node: ir.Node, lengths: Sequence[ir.Value], rotary: _Rotary) -> None:
    nodes = NewNodes(node, f"layers.{node.attributes['layer'].as_int()}.self_attn")
    inside = rotary.rows is None
    heads = [node.inputs[0], None, None] if inside else _rotated(nodes, node, rotary)
    caches = [rotary.cos, rotary.sin] if inside else []
    outputs = nodes.many(
        "GroupQueryAttention",
        [*heads, *node.inputs[3:5], *lengths, *caches],
        "attention",
        3,
        domain=ORT,
        num_heads=node.attributes["num_heads"].as_int(),
        kv_num_heads=node.attributes["kv_num_heads"].as_int(),
        scale=node.attributes["scale"].as_float(),
        do_rotary=int(inside),
        rotary_interleaved=0,
    )
    replace(node, outputs)


def _rotated(nodes: NewNodes, node: ir.Node, rotary: _Rotary) -> list[ir.Value]:
    """packed [B, T, (H + 2 K) d] -> query [B, T, H d] and key [B, T, K d], turned together, and value [B, T, K d]."""
    dim = head_dim(node)
    wide, narrow = (node.attributes[name].as_int() * dim for name in ("num_heads", "kv_num_heads"))
    joint, value = nodes.many("Split", [node.inputs[0], nodes.integers(wide + narrow, narrow)], "split_value", 2, axis=-1)
    inputs = [joint, rotary.rows, rotary.cos, rotary.sin]
    turned = nodes.one("RotaryEmbedding", inputs, "rotary", domain=ORT, interleaved=0)
    query, key = nodes.many("Split", [turned, nodes.integers(wide, narrow)], "split_key", 2, axis=-1)
    return [query, key, value]
