"""The language model's SwiGLU without its products in memory: down_proj(act(gate) * up) keeps gate and up alone.

Autograd would keep act(gate) and the product besides: half of what a decoder layer saves. The backward pass makes both again,
elementwise; it stops before down_proj's matrix product, which nothing needs a second time.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


def recompute_products(decoder_layers: nn.ModuleList) -> None:
    """From now on these layers' MLPs (gate_proj, up_proj, act_fn, down_proj) save less; outputs and gradients are bit-equal."""
    for layer in decoder_layers:
        mlp: Any = layer.mlp
        mlp.forward = partial(_forward, mlp)


def _forward(mlp: Any, hidden: Tensor) -> Tensor:
    """hidden [B, S, D] -> [B, S, D]."""
    gate, up = mlp.gate_proj(hidden), mlp.up_proj(hidden)  # [B, S, F]
    output: Tensor = checkpoint(partial(_down, mlp), gate, up, use_reentrant=False)
    return output


def _down(mlp: Any, gate: Tensor, up: Tensor) -> Tensor:
    down: Tensor = mlp.down_proj(mlp.act_fn(gate) * up)
    return down
