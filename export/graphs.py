"""The modules that become graphs: the family's own layers behind flat tensors.

    VisionGraph     get_image_features: vision_tower, pixel shuffle, multi_modal_projector
    DecoderGraph    language_model over inputs_embeds with K/V in and out, lm_head on the last column

B batch, H heads, K key/value heads, G = H / K, T new columns, S = past + T, d head dim.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface, InternVLForConditionalGeneration
from transformers.cache_utils import DynamicCache

ATTENTION = "drivekd_grouped"

PastKeyValues = list[tuple[torch.Tensor, torch.Tensor]]  # per layer, [B, K, past, d]


def grouped_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    **unused: Any,
) -> tuple[torch.Tensor, None]:
    """Attention that folds the G query heads of one key head into its rows: K/V are never repeated.

    query [B, H, T, d]; key, value [B, K, S, d]; attention_mask additive [B, 1, T, S]. Returns [B, T, H, d], no weights.
    """
    batch, heads, length, dim = query.shape
    kv_heads = key.shape[1]
    groups = heads // kv_heads
    scores = torch.matmul(query.reshape(batch, kv_heads, groups * length, dim), key.transpose(2, 3)) * scaling
    if attention_mask is not None:
        split = scores.reshape(batch, kv_heads, groups, length, -1) + attention_mask[:, :, None]  # [B, K, G, T, S]
        scores = split.reshape(batch, kv_heads, groups * length, -1)  # [B, K, G*T, S]
    mixed = torch.matmul(scores.softmax(-1), value)  # [B, K, G*T, d]
    return mixed.reshape(batch, heads, length, dim).transpose(1, 2).contiguous(), None


AttentionInterface.register(ATTENTION, grouped_attention)


@contextmanager
def export_attention(model: InternVLForConditionalGeneration) -> Iterator[None]:
    """The model with `grouped_attention`, in evaluation mode; its own attention comes back afterwards."""
    before, training = model.config._attn_implementation, model.training
    model.set_attn_implementation(ATTENTION)
    model.eval()
    try:
        yield
    finally:
        model.set_attn_implementation(before)
        model.train(training)


class VisionGraph(nn.Module):
    """pixel_values [N, 3, S, S] -> image_embeds [N, T, D]."""

    def __init__(self, model: InternVLForConditionalGeneration) -> None:
        super().__init__()
        self.model = model.model

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        image_embeds: torch.Tensor = self.model.get_image_features(pixel_values).pooler_output
        return image_embeds


class DecoderGraph(nn.Module):
    """Embeddings and past K/V -> logits [B, V] of the last column, and K/V of past and new columns."""

    def __init__(self, model: InternVLForConditionalGeneration) -> None:
        super().__init__()
        self.language_model = model.model.language_model
        self.lm_head = model.lm_head

    def forward(
        self,
        inputs_embeds: torch.Tensor,  # [B, T, D]
        attention_mask: torch.Tensor,  # [B, S], 0 = padding
        position_ids: torch.Tensor,  # [B, T]
        past_key_values: PastKeyValues,
    ) -> tuple[torch.Tensor, PastKeyValues]:
        cache = DynamicCache(config=self.language_model.config)
        for layer, (key, value) in enumerate(past_key_values):
            cache.update(key, value, layer)
        hidden = self.language_model(
            inputs_embeds=inputs_embeds,
            attention_mask={"full_attention": causal_mask(attention_mask, inputs_embeds.shape[1])},
            position_ids=position_ids,
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state  # [B, T, D]
        return self.lm_head(hidden[:, -1]), [(layer.keys, layer.values) for layer in cache.layers]


def causal_mask(attention_mask: torch.Tensor, length: int) -> torch.Tensor:
    """attention_mask [B, S] -> additive mask [B, 1, T, S] of the last T = `length` columns.

    The smallest finite number, not -inf: a padding row sees no key at all, and softmax over -inf alone is NaN.
    """
    total = attention_mask.shape[1]
    key = torch.arange(total, device=attention_mask.device)
    query = torch.arange(length, device=attention_mask.device) + (total - length)
    visible = (key[None, :] <= query[:, None])[None] & (attention_mask != 0)[:, None, :]  # [B, T, S]
    return torch.where(visible, 0.0, torch.finfo(torch.float32).min)[:, None]
