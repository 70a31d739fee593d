"""What the graphs take and give: names, dtypes and dims, in one place.

N images, T tokens per image, D hidden size, B batch, V vocabulary, L layers. Free dims have names:
    images                     tiles of one vision call
    batch, seq, past, total    rows, new columns, cached columns, total = past + seq

The decoder gives logits of the last column only: sequences of one call end together (left padding), so that is the one that
predicts, and a real vocabulary times a whole prompt would be the largest tensor of the run.
"""

from __future__ import annotations

from typing import Any

import torch

from drivekd.images import ImageSettings
from drivekd.runtime.kv_cache import past_names, present_names
from drivekd.runtime.manifest import GraphSpec, ModelInfo, TensorSpec

DIM_MIN = {"images": 1, "batch": 1, "seq": 1, "past": 0, "total": 1}
DUMMY_SIZE = {"images": 2, "batch": 2, "seq": 3, "past": 5, "total": 8}  # no two equal: torch.export merges equal sizes' names
FP32_ATOL = 1e-4  # DEPLOY section 5; measured 3e-6 on random weights


def vision_spec(model: ModelInfo, images: ImageSettings, tokens_per_image: int) -> GraphSpec:
    """pixel_values [N, 3, S, S] -> image_embeds [N, T, D]."""
    size = images.size_px
    return GraphSpec(
        file="vision.onnx",
        data_file=None,
        inputs=(TensorSpec("pixel_values", "float32", ("images", 3, size, size)),),
        outputs=(TensorSpec("image_embeds", "float32", ("images", tokens_per_image, model.hidden_size)),),
        atol=FP32_ATOL,
    )


def decoder_spec(model: ModelInfo) -> GraphSpec:
    """inputs_embeds [B, seq, D] and past K/V -> logits [B, V] of the last column and present K/V."""
    past = ("batch", model.num_kv_heads, "past", model.head_dim)
    present = ("batch", model.num_kv_heads, "past + seq", model.head_dim)
    return GraphSpec(
        file="decoder.concat.onnx",
        data_file=None,
        inputs=(
            TensorSpec("inputs_embeds", "float32", ("batch", "seq", model.hidden_size)),
            TensorSpec("attention_mask", "int64", ("batch", "total")),
            TensorSpec("position_ids", "int64", ("batch", "seq")),
            *(TensorSpec(name, "float32", past) for name in past_names(model.num_layers)),
        ),
        outputs=(
            TensorSpec("logits", "float32", ("batch", model.vocab_size)),
            *(TensorSpec(name, "float32", present) for name in present_names(model.num_layers)),
        ),
        atol=FP32_ATOL,
    )


def dummy_inputs(spec: GraphSpec) -> list[torch.Tensor]:
    """One tensor for each input; only shapes and dtypes matter."""
    return [
        torch.ones([DUMMY_SIZE[dim] if isinstance(dim, str) else dim for dim in tensor.dims], dtype=getattr(torch, tensor.dtype))
        for tensor in spec.inputs
    ]


def dynamic_dims(spec: GraphSpec) -> list[dict[int, Any]]:
    """For each input its free dims, as torch.export wants them."""
    dims = {name: torch.export.Dim(name, min=minimum) for name, minimum in DIM_MIN.items()}
    return [{axis: dims[dim] for axis, dim in enumerate(tensor.dims) if isinstance(dim, str)} for tensor in spec.inputs]
