"""What the graphs take and give: names, dtypes and dims, in one place.

N images, T tokens per image, D hidden size, B batch, V vocabulary, L layers. Free dims have names:
    images                     tiles of one vision call
    batch, seq, past, total    rows, new columns, cached columns, total = past + seq
    capacity                   columns that a K/V buffer has room for

The decoder gives logits of the last column only: sequences of one call end together (left padding), so that is the one that
predicts, and a real vocabulary times a whole prompt would be the largest tensor of the run.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import torch

from drivekd.export.parity.limits import ATOL
from drivekd.images import ImageForm, ImageSettings
from drivekd.runtime.bundle.graph_contract import past_names, present_names
from drivekd.runtime.bundle.manifest import GraphSpec, ModelInfo, TensorSpec

DIM_MIN = {"images": 1, "batch": 1, "seq": 1, "past": 0, "total": 1}
DUMMY_SIZE = {"images": 2, "batch": 2, "seq": 3, "past": 5, "total": 8}  # no two equal: torch.export merges equal sizes' names

Dims: TypeAlias = tuple[int | str, ...]


def vision_spec(model: ModelInfo, images: ImageForm, tokens_per_image: int) -> GraphSpec:
    """pixel_values [N, *pixel_shape] -> image_embeds [N, T, D]. N = 1 in Qwen2.5-VL, whose windows are one image's."""
    count: int | str = "images" if isinstance(images, ImageSettings) else 1
    return _fp32_spec(
        "vision.onnx",
        (TensorSpec("pixel_values", "float32", (count, *images.pixel_shape)),),
        (TensorSpec("image_embeds", "float32", (count, tokens_per_image, model.hidden_size)),),
    )


def decoder_spec(model: ModelInfo, dialect: str) -> GraphSpec:
    """The decoder of a dialect: inputs_embeds [B, seq, D] and past K/V -> logits [B, V] of the last column and present K/V.

    concat: attention_mask [B, total], any padding on the left; present is past with seq more columns.
    gqa: seqlens_k [B], each row's valid columns after this call, minus 1; total_sequence_length [1], the largest of them, plus 1;
    past and present are buffers of one capacity, and may be the same one. No padding; B > 1 needs seq = 1.
    """
    columns, text, grown = _cache_form(dialect)
    past, present = ((("batch", model.num_kv_heads, length, model.head_dim)) for length in (columns, grown))
    positions: Dims = ("batch", "seq") if model.rotary_axes == 1 else (model.rotary_axes, "batch", "seq")
    if dialect == "concat" or model.rotary_axes > 1:
        text = (*text, TensorSpec("position_ids", "int64", positions))
    return _fp32_spec(
        f"decoder.{dialect}.onnx",
        (
            TensorSpec("inputs_embeds", "float32", ("batch", "seq", model.hidden_size)),
            *text,
            *(TensorSpec(name, "float32", past) for name in past_names(model.num_layers)),
        ),
        (
            TensorSpec("logits", "float32", ("batch", model.vocab_size)),
            *(TensorSpec(name, "float32", present) for name in present_names(model.num_layers)),
        ),
    )


def _cache_form(dialect: str) -> tuple[str, tuple[TensorSpec, ...], str]:
    """Columns of past K/V, the inputs that say which of them count, and columns of present K/V."""
    if dialect == "concat":
        return "past", (TensorSpec("attention_mask", "int64", ("batch", "total")),), "past + seq"
    assert dialect == "gqa", dialect
    lengths = TensorSpec("seqlens_k", "int32", ("batch",)), TensorSpec("total_sequence_length", "int32", (1,))
    return "capacity", lengths, "capacity"


def _fp32_spec(file: str, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...]) -> GraphSpec:
    return GraphSpec(
        file=file, data_file=None, inputs=inputs, outputs=outputs, atol=ATOL["fp32"], precision="fp32", block=0, excluded=()
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
