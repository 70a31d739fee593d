"""InternVL's vision tower and projector as a module that becomes a graph: the family's own code with named layer outputs.

N images, S side in px, T tokens an image, D hidden size; B batch, H heads, L positions, d head dim
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, InternVLForConditionalGeneration

from drivekd.export.lowering.ops import mark
from drivekd.models.internvl import encode_tiles

ATTENTION = "drivekd_plain"


def plain_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: None, scaling: float, **unused: Any
) -> tuple[Tensor, None]:
    """Two matrix products and a softmax: every engine fuses those. query, key, value [B, H, L, d] -> [B, L, H, d], no weights."""
    weights = torch.matmul(query * scaling, key.transpose(2, 3)).softmax(-1)  # [B, H, L, L]
    return torch.matmul(weights, value).transpose(1, 2).contiguous(), None


AttentionInterface.register(ATTENTION, plain_attention)


class InternVLVision(nn.Module):
    """pixel_values [N, 3, S, S] -> image_embeds [N, T, D]; of images cut into tiles [N, tiles, 3, S, S] -> [N, tiles * T, D]."""

    def __init__(self, model: InternVLForConditionalGeneration) -> None:
        super().__init__()
        self.model = model.model

    def forward(self, pixel_values: Tensor) -> Tensor:
        with _marked_layers(self.model.vision_tower.encoder.layer):
            return encode_tiles(self.model, pixel_values)


@contextmanager
def _marked_layers(layers: nn.ModuleList) -> Iterator[None]:
    hooks = [
        layer.register_forward_hook(lambda _, __, output, name=f"vision.layers.{i}.output": mark(output, name))
        for i, layer in enumerate(layers)
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def export_attention(model: InternVLForConditionalGeneration) -> Iterator[None]:
    """The model with `plain_attention`; its own attention comes back afterwards."""
    before = model.config._attn_implementation
    model.set_attn_implementation(ATTENTION)
    try:
        yield
    finally:
        model.set_attn_implementation(before)
