"""The Qwen2.5-VL family (3B, 7B, 32B, 72B) through transformers' own classes.

Qwen2_5_VLForConditionalGeneration
  model.visual                  patches [N * P, 3 * 2 * 14 * 14] -> image_embeds [N * T, D], four patches a token
    patch_embed, blocks         the vision encoder; most blocks attend within windows of 112 px
    merger                      the projector: 2 x 2 patches, then MLP
  model.language_model          Qwen2_5_VLTextModel: embed_tokens, layers[0..L-1].self_attn, norm; positions [3, B, S]
  lm_head                       tied to embed_tokens in 3B, a matrix of its own in the others

pixel_values are [N, rows, columns, 4, 1176], as drivekd.images.patches makes them: the first axes say what shape the images have,
which the tower must know and transformers takes as image_grid_thw.
"""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Qwen2_5_VLForConditionalGeneration
from transformers.vision_utils import get_vision_window_index

from drivekd.images import PatchSettings
from drivekd.processor import QWEN2_5_VL

from .family import Family, Part

MODEL_TYPE = QWEN2_5_VL


def image_grids(pixel_values: Tensor, merge: int) -> Tensor:
    """image_grid_thw [N, 3] int64 of pixel_values [N, rows, columns, merge², values]: one still image each, in patches."""
    count, rows, columns = pixel_values.shape[:3]
    return torch.tensor([[1, rows * merge, columns * merge]], device=pixel_values.device).expand(count, 3)


def _towers(model: Qwen2_5_VLForConditionalGeneration) -> dict[Part, nn.Module]:
    return {
        "vision_encoder": model.model.visual,
        "projector": model.model.visual.merger,
        "language_model": model.model.language_model,
    }


def _parts(model: Qwen2_5_VLForConditionalGeneration) -> dict[Part, list[nn.Module]]:
    visual = model.model.visual
    return {
        "vision_encoder": [visual.patch_embed, visual.blocks],
        "projector": [visual.merger],
        "language_model": [model.model.language_model, model.lm_head],
    }


def _encode_images(model: Qwen2_5_VLForConditionalGeneration, pixel_values: Tensor) -> Tensor:
    visual = model.model.visual
    grids = image_grids(pixel_values, visual.spatial_merge_size)
    patches = pixel_values.flatten(0, 3).to(visual.dtype)  # [N * P, values]
    embeds: Tensor = visual(patches, grid_thw=grids).pooler_output  # [N * T, D]
    return embeds.reshape(len(pixel_values), -1, embeds.shape[-1])  # [N, T, D]


FAMILY = Family(
    model_type=MODEL_TYPE,
    model_class=Qwen2_5_VLForConditionalGeneration,
    parts=_parts,
    towers=_towers,
    encode_images=_encode_images,
    rotary_axes=3,
    text_models=("qwen2_5_vl_text",),
)


Groups = list[tuple[int, int]]  # (number of windows, patches in each), in the order in which they lie


def window_order(visual: Any, images: PatchSettings) -> tuple[Tensor, Groups]:
    """Which token stands where, [T]: windows one behind the other, equal sizes together; and how many there are of each size."""
    index, bounds = get_vision_window_index(
        _grid(images),
        spatial_merge_size=visual.spatial_merge_size,
        window_size=visual.window_size,
        patch_size=visual.patch_size,
    )
    merged = visual.spatial_merge_size**2
    tokens = [end - start for start, end in itertools.pairwise((bounds // merged).tolist()) if end > start]
    windows = sorted(index.split(tokens), key=len, reverse=True)
    groups = [(len(list(same)), length * merged) for length, same in itertools.groupby(map(len, windows))]
    return torch.cat(windows), groups


def _grid(images: PatchSettings) -> Tensor:
    """image_grid_thw of one image, in patches."""
    rows, columns = images.token_grid
    return torch.tensor([[1, rows * images.merge, columns * images.merge]])
