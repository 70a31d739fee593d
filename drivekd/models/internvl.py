"""The InternVL family (InternVL3-1B-hf ... 78B-hf) through transformers' own classes.

InternVLForConditionalGeneration
  model.vision_tower            InternViT: pixel_values [N, 3, S, S] -> [N, 1 + patches, Dv]
  model.multi_modal_projector   pixel shuffle, then MLP -> image_embeds [N, T, D]
  model.language_model          Qwen2Model: embed_tokens, layers[0..L-1].self_attn, norm
  lm_head                       tied to embed_tokens in some sizes, a matrix of its own in others
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import InternVLForConditionalGeneration
from transformers.utils import logging as transformers_logging

from drivekd.errors import CheckpointError
from drivekd.processor import read_checkpoint_json

MODEL_TYPE = "internvl"
Part = Literal["vision_encoder", "projector", "language_model"]


def load_model(checkpoint: Path, *, attention: str = "sdpa") -> InternVLForConditionalGeneration:
    """Load fp32 weights (masters) of a checkpoint directory. Raises CheckpointError naming what is wrong.

    attention: the name of an attention function known to transformers' AttentionInterface.
    """
    config = read_checkpoint_json(checkpoint, "config.json")
    if config.get("model_type") != MODEL_TYPE:
        raise CheckpointError(
            f"{checkpoint}: model_type is {config.get('model_type')!r}; this version takes {MODEL_TYPE!r} "
            "(InternVL3 in the -hf layout, for example OpenGVLab/InternVL3-1B-hf)"
        )
    if not any(checkpoint.glob("*.safetensors")):
        raise CheckpointError(f"{checkpoint}: no *.safetensors weights found")
    transformers_logging.disable_progress_bar()  # its bars would break up our one progress line
    try:
        model, report = InternVLForConditionalGeneration.from_pretrained(
            checkpoint, dtype=torch.float32, attn_implementation=attention, local_files_only=True, output_loading_info=True
        )
    except (OSError, RuntimeError, ValueError, SafetensorError) as error:
        raise CheckpointError(f"{checkpoint}: weights cannot be loaded ({error})") from error
    missing = sorted(report["missing_keys"])
    if missing:
        raise CheckpointError(f"{checkpoint}: {len(missing)} weights are missing, first {missing[0]}")
    assert isinstance(model, InternVLForConditionalGeneration)
    return model


def part(model: InternVLForConditionalGeneration, name: Part) -> nn.Module:
    """The module that a configuration calls vision_encoder, projector or language_model."""
    modules: dict[Part, nn.Module] = {
        "vision_encoder": model.model.vision_tower,
        "projector": model.model.multi_modal_projector,
        "language_model": model.model.language_model,
    }
    return modules[name]


def modules_of(model: InternVLForConditionalGeneration, name: Part) -> list[nn.Module]:
    """The modules that hold a part's weights: the head belongs to the language model, tied or not."""
    return [part(model, name), *([model.lm_head] if name == "language_model" else [])]


def num_layers(model: InternVLForConditionalGeneration) -> int:
    """Number of decoder layers of the language model."""
    return int(model.config.text_config.num_hidden_layers)
