"""Attention capture: the head-mean attention of chosen decoder layers, with SDPA doing the model's own work.

A function registered with transformers' AttentionInterface returns SDPA's output and, for the layers that a capture asks
for, computes softmax(q kᵀ) a second time from the same q and k. Two traps are met here (METHOD section 5): the same name is
registered with AttentionMaskInterface, else padding vanishes; and under gradient checkpointing the backward pass runs the
forward again, which must save the same tensors: the map is computed again, and the first one stays.

    B samples, H query heads, G = H / key heads, S positions, D head width
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

CAPTURE_ATTENTION = "drivekd_capture"
_SINK = "drivekd_attention_sink"


def mean_attention(query: Tensor, key: Tensor, attention_mask: Tensor | None, scaling: float) -> Tensor:
    """Post-softmax causal attention, averaged over heads, in fp32.

    query [B, H, S, D], key [B, H, S, D]; attention_mask [B, 1, S, S], bool (true = may attend) or additive, or None for
    plain causal attention. Returns [B, S, S].
    """
    with torch.autocast(query.device.type, enabled=False):
        scores = query.float() @ key.float().transpose(-2, -1) * scaling  # [B, H, S, S]
    if attention_mask is None:
        length = scores.shape[-1]
        attention_mask = torch.ones(length, length, dtype=torch.bool, device=scores.device).tril()
    if attention_mask.dtype == torch.bool:
        scores = scores.masked_fill(~attention_mask, torch.finfo(scores.dtype).min)
    else:
        scores = scores + attention_mask
    return scores.softmax(-1).mean(1)  # [B, S, S]


def _capturing_sdpa(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, None]:
    sink: dict[int, Tensor] | None = getattr(module, _SINK, None)
    layer = getattr(module, "layer_idx", None)
    if sink is not None:
        groups = getattr(module, "num_key_value_groups", 1)
        assert isinstance(layer, int)
        assert isinstance(groups, int)
        attention = mean_attention(query, repeat_kv(key, groups), attention_mask, kwargs["scaling"])
        sink.setdefault(layer, attention)
    output, _ = sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    return output, None


AttentionInterface.register(CAPTURE_ATTENTION, _capturing_sdpa)
AttentionMaskInterface.register(CAPTURE_ATTENTION, sdpa_mask)


@contextmanager
def capture_attention(decoder_layers: nn.ModuleList, wanted: Sequence[int]) -> Iterator[dict[int, Tensor]]:
    """Within the block, one forward pass fills the yielded dict: layer index -> [B, S, S] fp32, mean over heads.

    The model must have been loaded with `attention=CAPTURE_ATTENTION`; otherwise the block raises KeyError at its end. With
    gradient checkpointing (use_reentrant=False) the backward pass belongs into the block, too.
    """
    sink: dict[int, Tensor] = {}
    for layer in wanted:
        setattr(decoder_layers[layer].self_attn, _SINK, sink)
    try:
        yield sink
    finally:
        for layer in wanted:
            delattr(decoder_layers[layer].self_attn, _SINK)
    if missing := [layer for layer in wanted if layer not in sink]:
        raise KeyError(f"layers {missing} were not captured: load the model with attention={CAPTURE_ATTENTION!r}")
