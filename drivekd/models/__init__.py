"""Model families behind one small face, the tiny families, and attention capture. Imports torch.

model = load_model(checkpoint)                    # of any family in FAMILIES
embeds = encode_images(model, pixel_values)       # [N, *pixel_shape] -> [N, T, D]
language_model(model)(inputs_embeds=..., attention_mask=..., position_ids=rotary_positions(model, positions))
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from drivekd.hf_checkpoint import Checkpoint

from . import internvl, qwen2_5_vl
from .family import Family, Part, load_weights, model_config

__all__ = [
    "FAMILIES",
    "Family",
    "LanguageShape",
    "Part",
    "encode_images",
    "family_of",
    "language_model",
    "language_shape",
    "load_model",
    "modules_of",
    "num_layers",
    "part",
    "rotary_positions",
]

FAMILIES: dict[str, Family] = {family.model_type: family for family in (internvl.FAMILY, qwen2_5_vl.FAMILY)}


def family_of(model: PreTrainedModel) -> Family:
    """The family of a loaded model."""
    return FAMILIES[model.config.model_type]


def load_model(checkpoint: Path | Checkpoint, *, attention: str = "sdpa", dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """Load a checkpoint of any family. Raises CheckpointError naming what is wrong, and the known families for another one.

    attention: the name of an attention function known to transformers' AttentionInterface. dtype: of the weights; fp32 = masters.
    """
    return load_weights(Checkpoint.open(checkpoint), FAMILIES, attention=attention, dtype=dtype)


def part(model: PreTrainedModel, name: Part) -> nn.Module:
    """The module that a configuration calls vision_encoder, projector or language_model.

    In Qwen2.5-VL the projector lies within the vision tower; which weights are whose: modules_of.
    """
    return family_of(model).towers(model)[name]


def modules_of(model: PreTrainedModel, name: Part) -> list[nn.Module]:
    """The modules that hold a part's weights and no other part's: the head belongs to the language model, tied or not."""
    return family_of(model).parts(model)[name]


def language_model(model: PreTrainedModel) -> nn.Module:
    """The decoder stack: .embed_tokens, .layers[i].self_attn, .norm."""
    return part(model, "language_model")


def num_layers(model: PreTrainedModel) -> int:
    """Number of decoder layers of the language model."""
    return int(model.config.text_config.num_hidden_layers)


@dataclass(frozen=True)
class LanguageShape:
    """layers: decoder layers. width: of the hidden states and of image features. words: rows of embedding and head, those of the
    tokenizer's and what pads them."""

    layers: int
    width: int
    words: int


def language_shape(checkpoint: Checkpoint) -> LanguageShape:
    """From a checkpoint's config.json alone, no weights."""
    text = model_config(checkpoint, FAMILIES[checkpoint.model_type]).text_config
    return LanguageShape(text.num_hidden_layers, text.hidden_size, text.vocab_size)


def encode_images(model: PreTrainedModel, pixel_values: Tensor) -> Tensor:
    """Vision tower and projector: [N, *pixel_shape], as Processor.normalize makes them -> [N, T, D]; differentiable."""
    return family_of(model).encode_images(model, pixel_values)


def rotary_positions(model: PreTrainedModel, positions: Tensor) -> Tensor:
    """Positions [A, B, S] -> what the decoder takes as position_ids: [B, S], or [3, B, S] with multimodal rotary positions."""
    assert positions.ndim == 3 and len(positions) == family_of(model).rotary_axes, f"{list(positions.shape)}"
    return positions if len(positions) > 1 else positions[0]
