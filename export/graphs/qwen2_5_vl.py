"""Qwen2.5-VL's vision tower as a module that becomes a graph, for images of one size.

Windows, their order and rotary angles depend on the image's size alone: they are constants here. transformers attends window by
window; here windows of equal size are put side by side and attend as one batch (attention does not mind the order of patches, so
the order may be any that keeps windows together). Numerically the same as transformers' own.

P patches, P / 4 = T tokens, H heads, d head dim, Dv width, D hidden size of the language model
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import Qwen2_5_VLForConditionalGeneration
from transformers.vision_utils import get_vision_position_ids

from drivekd.export.lowering.ops import mark
from drivekd.images import PatchSettings
from drivekd.models.qwen2_5_vl import Groups, _grid, window_order


class QwenVision(nn.Module):
    """pixel_values [1, rows, columns, merge², values] -> image_embeds [1, T, D]."""

    patch_embed: Tensor
    order: Tensor
    inverse: Tensor
    cos: Tensor
    sin: Tensor

    def __init__(self, model: Qwen2_5_VLForConditionalGeneration, images: PatchSettings) -> None:
        super().__init__()
        visual = model.model.visual
        self.blocks, self.merger = visual.blocks, visual.merger
        self.full = set(visual.fullatt_block_indexes)
        # the convolution's kernel is as large as its step: a matrix product
        self.register_buffer("patch_embed", visual.patch_embed.proj.weight.detach().flatten(1).T)  # [values, Dv]
        order, self.windows = window_order(visual, images)
        self.register_buffer("order", order)
        self.register_buffer("inverse", order.argsort())
        positions = get_vision_position_ids(_grid(images), visual.spatial_merge_size)  # [P, 2]
        for name, table in zip(("cos", "sin"), visual.rotary_pos_emb(torch.empty(0), positions), strict=True):  # [P, d] each
            half = table[:, : table.shape[1] // 2].unflatten(0, (len(order), -1))  # [T, merge², d / 2]
            self.register_buffer(name, half[order].flatten(0, 1).unsqueeze(1))  # [P, 1, d / 2]

    def forward(self, pixel_values: Tensor) -> Tensor:
        tokens = pixel_values.flatten(1, 2).index_select(1, self.order)  # [1, T, merge², values]
        hidden = tokens.flatten(1, 2) @ self.patch_embed  # [1, P, Dv]
        whole = [(1, hidden.shape[1])]
        for number, block in enumerate(self.blocks):
            groups = whole if number in self.full else self.windows
            hidden = hidden + self._attention(block.attn, block.norm1(hidden), groups)
            hidden = mark(hidden + block.mlp(block.norm2(hidden)), f"vision.layers.{number}.output")
        merged = self.merger.ln_q(hidden).reshape(1, len(self.order), -1)  # [1, T, merge² Dv]
        embeds: Tensor = self.merger.mlp(merged).index_select(1, self.inverse)  # [1, T, D]
        return embeds

    def _attention(self, attention: Any, hidden: Tensor, groups: Groups) -> Tensor:
        """hidden [1, P, Dv] -> [1, P, Dv]; each window of `groups` attends to itself."""
        width = hidden.shape[2]
        joint, value = attention.qkv(hidden).split_with_sizes([2 * width, width], dim=-1)
        turned = self._rotated(joint.unflatten(2, (2 * attention.num_heads, -1)))  # query's heads, then key's
        query, key = turned.chunk(2, dim=2)  # [1, P, H, d]
        heads = query * attention.scaling, key, value.unflatten(2, (attention.num_heads, -1))
        sizes = [count * length for count, length in groups]
        parts = zip(*(tensor.split_with_sizes(sizes, dim=1) for tensor in heads), groups, strict=True)
        mixed = [_window_attention(q, k, v, *group) for q, k, v, group in parts]
        output: Tensor = attention.proj(torch.cat(mixed, dim=1))
        return output

    def _rotated(self, heads: Tensor) -> Tensor:
        """[1, P, heads, d], the halves of each turned against each other."""
        first, second = heads.chunk(2, dim=-1)
        return torch.cat([first * self.cos - second * self.sin, second * self.cos + first * self.sin], dim=-1)


def _window_attention(query: Tensor, key: Tensor, value: Tensor, count: int, length: int) -> Tensor:
    """[1, count * length, H, d] each -> [1, count * length, H d]."""
    heads, dim = query.shape[2:]
    query, key, value = (tensor.reshape(count, length, heads, dim).transpose(1, 2) for tensor in (query, key, value))
    weights = (query @ key.transpose(2, 3)).softmax(-1)  # [count, H, length, length]
    return (weights @ value).transpose(1, 2).reshape(1, count * length, heads * dim)
