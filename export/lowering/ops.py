"""What torch exports as one node each, in the domain "drivekd"; passes lower these to a dialect's own operators.

    RMSNorm(x [..., D], weight [D]; epsilon) -> [..., D]
    CachedAttention(query [B, T, H d], key, value [B, T, K d], past_key, past_value [B, K, P, d], cos, sin [B, T, d / 2],
                    bias [B, 1, T, S]; layer, num_heads, kv_num_heads, scale)
        -> attended [B, T, H d], present_key, present_value [B, K, S, d]      query and key are not rotated yet; S = P + T
    Mark(x; name) -> x      the value gets this name

Outside an export they compute nothing: torch returns zeros of the right shape.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import onnx_ir as ir
import torch
from torch import Tensor, nn

DOMAIN = "drivekd"
RMS_NORM, CACHED_ATTENTION, MARK = "RMSNorm", "CachedAttention", "Mark"


def rms_norm(norm: Any, hidden: Tensor) -> Tensor:
    """The node of one of transformers' RMSNorm modules (weight, variance_epsilon)."""
    return torch.onnx.ops.symbolic(
        f"{DOMAIN}::{RMS_NORM}",
        (hidden, norm.weight),
        {"epsilon": float(norm.variance_epsilon)},
        dtype=hidden.dtype,
        shape=hidden.shape,
        version=1,
    )


def mark(hidden: Tensor, name: str) -> Tensor:
    """`hidden`, whose value in the graph is called `name`."""
    return torch.onnx.ops.symbolic(
        f"{DOMAIN}::{MARK}", (hidden,), {"name": name}, dtype=hidden.dtype, shape=hidden.shape, version=1
    )


def cached_attention(
    attention: Any, layer: int, query: Tensor, key: Tensor, value: Tensor, past: tuple[Tensor, Tensor], *rest: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The node of a decoder layer's attention module; rest: cos, sin, bias. Shapes: see above."""
    batch, kv_heads, past_length, dim = past[0].shape
    present = (batch, kv_heads, past_length + query.shape[1], dim)
    attributes: dict[str, int | float | str | bool | Sequence[int] | Sequence[float] | Sequence[str] | Sequence[bool]] = {
        "layer": layer,
        "num_heads": query.shape[2] // dim,
        "kv_num_heads": kv_heads,
        "scale": float(attention.scaling),
    }
    attended, present_key, present_value = torch.onnx.ops.symbolic_multi_out(
        f"{DOMAIN}::{CACHED_ATTENTION}",
        (query, key, value, *past, *rest),
        attributes,
        dtypes=(query.dtype,) * 3,
        shapes=(query.shape, present, present),
        version=1,
    )
    return attended, present_key, present_value


def head_dim(node: ir.Node) -> int:
    """d of a CachedAttention node."""
    past = node.inputs[3]
    assert past is not None and past.shape is not None
    width = past.shape[3]
    assert isinstance(width, int)
    return width


@contextmanager
def symbolic_norms(model: nn.Module) -> Iterator[None]:
    """Within it, the RMSNorm modules of `model` become one node each."""
    norms = [module for module in model.modules() if type(module).__name__.endswith("RMSNorm")]
    for module in norms:
        module.forward = partial(rms_norm, module)
    try:
        yield
    finally:
        for module in norms:
            del module.forward
