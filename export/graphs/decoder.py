"""The language model's module that becomes a graph: both families' decoder layers over flat tensors.

    rotary tables -> per layer: input_layernorm, q/k/v_proj, CachedAttention, o_proj, post_attention_layernorm, mlp
    -> last column -> norm -> lm_head

One source for every dialect: how a layer keeps its K/V is decided when CachedAttention is lowered.

B batch, T new columns, P past, S = P + T, D hidden size, d head dim, V vocabulary, A rotary axes
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from drivekd.export.lowering.ops import cached_attention, mark
from drivekd.models import family_of, language_model

PastKeyValues = list[tuple[Tensor, Tensor]]  # per layer, [B, K, P, d]


class DecoderGraph(nn.Module):
    """Embeddings and past K/V -> logits [B, V] behind the last column, and K/V of past and new columns."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        decoder: Any = language_model(model)
        self.layers, self.norm, self.lm_head = decoder.layers, decoder.norm, model.lm_head
        single = family_of(model).rotary_axes == 1
        self.rotary = RotaryTable(decoder) if single else RotaryAngles(decoder)

    def forward(
        self,
        inputs_embeds: Tensor,  # [B, T, D]
        attention_mask: Tensor,  # [B, S], 0 = padding
        position_ids: Tensor,  # [B, T], or [A, B, T] with A > 1
        past_key_values: PastKeyValues,
    ) -> tuple[Tensor, PastKeyValues]:
        cos, sin = self.rotary(position_ids)  # [B, T, d / 2]
        bias = causal_mask(attention_mask, inputs_embeds.shape[1])  # [B, 1, T, S]
        hidden, present = inputs_embeds, []
        for number, past in enumerate(past_key_values):
            hidden, kept = self._layer(number, hidden, past, cos, sin, bias)
            present.append(kept)
        last = hidden.select(1, -1).unsqueeze(1)  # [B, 1, D]: over two axes torch would write Gemm, which quantizers pass by
        logits: Tensor = self.lm_head(self.norm(last)).squeeze(1)
        return logits, present

    def _layer(
        self, number: int, hidden: Tensor, past: tuple[Tensor, Tensor], cos: Tensor, sin: Tensor, bias: Tensor
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        layer: Any = self.layers[number]
        attention = layer.self_attn
        normed = layer.input_layernorm(hidden)
        projected = attention.q_proj(normed), attention.k_proj(normed), attention.v_proj(normed)
        attended, key, value = cached_attention(attention, number, *projected, past, cos, sin, bias)
        hidden = hidden + attention.o_proj(attended)
        hidden = hidden + layer.mlp(layer.post_attention_layernorm(hidden))
        return mark(hidden, f"layers.{number}.output"), (key, value)


class RotaryTable(nn.Module):
    """position_ids [B, T] -> cos and sin [B, T, d / 2], from tables that GroupQueryAttention takes whole; exact in fp16, too."""

    cos: Tensor
    sin: Tensor

    def __init__(self, decoder: Any) -> None:
        super().__init__()
        rotary = decoder.rotary_emb
        angles = torch.arange(decoder.config.max_position_embeddings)[:, None].float() * rotary.original_inv_freq.float()
        self.register_buffer("cos", angles.cos() * rotary.attention_scaling)  # [positions, d / 2]
        self.register_buffer("sin", angles.sin() * rotary.attention_scaling)

    def forward(self, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        return F.embedding(position_ids, self.cos), F.embedding(position_ids, self.sin)


class RotaryAngles(nn.Module):
    """position_ids [A, B, T] -> cos and sin [B, T, d / 2]: section i of the angles follows axis i mod A.

    (Qwen2-VL, arXiv 2409.12191, section 2.1.) Computed in the graph: three axes of 128,000 positions would be tables of 65 MB.
    """

    inv_freq: Tensor
    axes: Tensor

    def __init__(self, decoder: Any) -> None:
        super().__init__()
        rotary = decoder.rotary_emb
        self.scaling = float(rotary.attention_scaling)
        self.register_buffer("inv_freq", rotary.original_inv_freq.float())  # [d / 2]
        axes = [number % 3 for number, width in enumerate(rotary.mrope_section) for _ in range(width)]
        self.register_buffer("axes", torch.tensor(axes))  # [d / 2]

    def forward(self, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        positions = position_ids.index_select(0, self.axes).permute(1, 2, 0)  # [B, T, d / 2]
        angles = positions.float() * self.inv_freq
        cos, sin = angles.cos(), angles.sin()
        return (cos, sin) if self.scaling == 1 else (cos * self.scaling, sin * self.scaling)


def causal_mask(attention_mask: Tensor, length: int) -> Tensor:
    """attention_mask [B, S] -> additive mask [B, 1, T, S] of the last T = `length` columns.

    The smallest finite number, not -inf: a padding row sees no key at all, and softmax over -inf alone is NaN.
    """
    total = attention_mask.shape[1]
    key = torch.arange(total, device=attention_mask.device)
    query = torch.arange(length, device=attention_mask.device) + (total - length)
    earlier = (key <= query.unsqueeze(1)).unsqueeze(0)  # [1, T, S]
    visible = earlier & (attention_mask != 0).unsqueeze(1)  # [B, T, S]
    return torch.where(visible, 0.0, torch.finfo(torch.float32).min).unsqueeze(1)
