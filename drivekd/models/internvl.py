"""The InternVL family (InternVL3-1B-hf ... 78B-hf) through transformers' own classes.

InternVLForConditionalGeneration
  model.vision_tower            InternViT: pixel_values [N, 3, S, S] -> [N, 1 + patches, Dv]
  model.multi_modal_projector   pixel shuffle, then MLP -> image_embeds [N, T, D]
  model.language_model          Qwen2Model (or Llama's, Mistral's): embed_tokens, layers[0..L-1].self_attn, norm
  lm_head                       tied to embed_tokens in some sizes, a matrix of its own in others

OpenGVLab's original layout (model_type internvl_chat) is read, too; what is saved is the -hf layout.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor, nn
from transformers import InternVLForConditionalGeneration

from drivekd.hf_checkpoint import INTERNVL_CHAT, Checkpoint
from drivekd.processor import INTERNVL

from .family import Family, Part, load_weights
from .internvl_weights import hf_weights

MODEL_TYPE = INTERNVL


def _towers(model: InternVLForConditionalGeneration) -> dict[Part, nn.Module]:
    return {
        "vision_encoder": model.model.vision_tower,
        "projector": model.model.multi_modal_projector,
        "language_model": model.model.language_model,
    }


def _parts(model: InternVLForConditionalGeneration) -> dict[Part, list[nn.Module]]:
    modules = {name: [tower] for name, tower in _towers(model).items()}
    modules["language_model"].append(model.lm_head)
    return modules


def _encode_images(model: InternVLForConditionalGeneration, pixel_values: Tensor) -> Tensor:
    return encode_tiles(model, pixel_values)


def encode_tiles(model: Any, pixel_values: Tensor) -> Tensor:
    """Images of one tile [N, 3, S, S] -> [N, T, D]; of several [N, tiles, 3, S, S] -> [N, tiles * T, D], tile after tile.

    model: anything with transformers' get_image_features.
    """
    if pixel_values.ndim == 4:
        embeds: Tensor = model.get_image_features(pixel_values=pixel_values).pooler_output  # [N, T, D]
        return embeds
    tiles: Tensor = model.get_image_features(pixel_values=pixel_values.flatten(0, 1)).pooler_output  # [N * tiles, T, D]
    return tiles.reshape(-1, pixel_values.shape[1] * tiles.shape[1], tiles.shape[2])


FAMILY = Family(
    model_type=MODEL_TYPE,
    model_class=InternVLForConditionalGeneration,
    parts=_parts,
    towers=_towers,
    encode_images=_encode_images,
    rotary_axes=1,
    text_models=("qwen2", "llama", "mistral"),
    other_layouts={INTERNVL_CHAT: hf_weights},
)


def load_model(checkpoint: Path | Checkpoint, *, attention: str = "sdpa") -> InternVLForConditionalGeneration:
    """Load fp32 weights (masters) of an InternVL checkpoint. Raises CheckpointError, also on another family.

    attention: the name of an attention function known to transformers' AttentionInterface.
    """
    return load_weights(Checkpoint.open(checkpoint), {MODEL_TYPE: FAMILY}, attention=attention)


def part(model: InternVLForConditionalGeneration, name: Part) -> nn.Module:
    """The module that a configuration calls vision_encoder, projector or language_model."""
    return _towers(model)[name]


def modules_of(model: InternVLForConditionalGeneration, name: Part) -> list[nn.Module]:
    """The modules that hold a part's weights: the head belongs to the language model, tied or not."""
    return _parts(model)[name]


def num_layers(model: InternVLForConditionalGeneration) -> int:
    """Number of decoder layers of the language model."""
    return int(model.config.text_config.num_hidden_layers)
