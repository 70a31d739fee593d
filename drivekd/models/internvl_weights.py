"""Weights of OpenGVLab's original InternVLChat layout, renamed to transformers' InternVLForConditionalGeneration.

vision_model.embeddings.{class,patch,position}_embedding   -> model.vision_tower.embeddings.*
vision_model.encoder.layers.N.{attn,norm1,norm2,ls1,ls2,mlp} -> model.vision_tower.encoder.layer.N.*; attn.qkv is cut in three
mlp1.{0,1,3}                                               -> model.multi_modal_projector.{layer_norm,linear_1,linear_2}
language_model.model.*, language_model.lm_head             -> model.language_model.*, lm_head
"""

from __future__ import annotations

import re
from pathlib import Path

from safetensors import safe_open
from torch import Tensor

from drivekd.errors import CheckpointError
from drivekd.files import weight_files

_RENAMED = (  # whole names; the first that matches counts
    (r"vision_model\.embeddings\.class_embedding", "model.vision_tower.embeddings.cls_token"),
    (r"vision_model\.embeddings\.position_embedding", "model.vision_tower.embeddings.position_embeddings"),
    (r"vision_model\.embeddings\.patch_embedding\.(.+)", r"model.vision_tower.embeddings.patch_embeddings.projection.\1"),
    (
        r"vision_model\.encoder\.layers\.(\d+)\.attn\.proj\.(.+)",
        r"model.vision_tower.encoder.layer.\1.attention.projection_layer.\2",
    ),
    (r"vision_model\.encoder\.layers\.(\d+)\.attn\.(.+)", r"model.vision_tower.encoder.layer.\1.attention.\2"),
    (r"vision_model\.encoder\.layers\.(\d+)\.norm1\.(.+)", r"model.vision_tower.encoder.layer.\1.layernorm_before.\2"),
    (r"vision_model\.encoder\.layers\.(\d+)\.norm2\.(.+)", r"model.vision_tower.encoder.layer.\1.layernorm_after.\2"),
    (r"vision_model\.encoder\.layers\.(\d+)\.ls([12])", r"model.vision_tower.encoder.layer.\1.lambda_\2"),
    (r"vision_model\.encoder\.layers\.(\d+)\.mlp\.(.+)", r"model.vision_tower.encoder.layer.\1.mlp.\2"),
    (r"mlp1\.0\.(.+)", r"model.multi_modal_projector.layer_norm.\1"),
    (r"mlp1\.1\.(.+)", r"model.multi_modal_projector.linear_1.\1"),
    (r"mlp1\.3\.(.+)", r"model.multi_modal_projector.linear_2.\1"),
    (r"language_model\.model\.(.+)", r"model.language_model.\1"),
    (r"language_model\.lm_head\.(.+)", r"lm_head.\1"),
)


def hf_weights(checkpoint: Path) -> dict[str, Tensor]:
    """Every weight of a directory in the original layout, under transformers' name. Raises CheckpointError on an unknown name."""
    weights: dict[str, Tensor] = {}
    for path in weight_files(checkpoint):
        with safe_open(path, framework="pt") as file:  # maps the file: nothing is copied before the model takes it
            for name in file.keys():  # noqa: SIM118  not a dict
                weights |= _converted(name, file.get_tensor(name), path)
    return weights


def _converted(name: str, tensor: Tensor, path: Path) -> dict[str, Tensor]:
    new = next((re.sub(old, new, name) for old, new in _RENAMED if re.fullmatch(old, name)), None)
    if new is None:
        raise CheckpointError(f"{path}: weight {name!r} is not of InternVL3's original layout")
    if ".attention.qkv." not in new:
        return {new: tensor}
    pieces = tensor.chunk(3)  # rows: all of q, then k, then v
    return {new.replace(".qkv.", f".{letter}_proj."): piece for letter, piece in zip("qkv", pieces, strict=True)}
