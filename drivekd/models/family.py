"""What a model family is, and how its weights are loaded. A new family is one file beside this one and a line in __init__.py.

Every family is a transformers class with a vision tower and projector that make image embeddings, a decoder that takes
`inputs_embeds`, and `lm_head`. Distillation needs no more of it than the fields of `Family`.

    N images, T vision tokens an image, D width, A rotary axes (1, or 3 with multimodal rotary positions), B samples, S positions
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils import logging as transformers_logging

from drivekd.errors import CheckpointError
from drivekd.files import weight_files
from drivekd.hf_checkpoint import ADAPTER_WEIGHTS, Checkpoint

from .text_models import check_layers, check_text_model

WEIGHTS_INDEX = "model.safetensors.index.json"
Part: TypeAlias = Literal["vision_encoder", "projector", "language_model"]


@dataclass(frozen=True)
class Family:
    """model_type: as config.json has it. model_class: transformers' own, with config_class.

    parts: part -> the modules that hold its weights, disjoint, all of them together (the head belongs to the language model, tied
    or not). towers: part -> the one module that is called. encode_images: pixel_values [N, *pixel_shape] -> [N, T, D],
    differentiable. rotary_axes: A, the axes of a position. text_models: what text_config.model_type may be, the first where it
    does not say. other_layouts: model_type of another layout of the same weights ->
    what reads them under this class's names.
    """

    model_type: str
    model_class: Any
    parts: Callable[[Any], dict[Part, list[nn.Module]]]
    towers: Callable[[Any], dict[Part, nn.Module]]
    encode_images: Callable[[Any, Tensor], Tensor]
    rotary_axes: int
    text_models: tuple[str, ...]
    other_layouts: Mapping[str, Callable[[Path], dict[str, Tensor]]] = field(default_factory=dict)


def load_weights(
    checkpoint: Checkpoint, families: Mapping[str, Family], *, attention: str = "sdpa", dtype: torch.dtype = torch.float32
) -> PreTrainedModel:
    """The model of a checkpoint. Raises CheckpointError naming what is wrong.

    attention: the name of an attention function known to transformers' AttentionInterface. dtype: of the weights in memory.
    """
    path, family = checkpoint.path, families.get(checkpoint.model_type)
    if family is None:
        raise CheckpointError(f"{path}: model_type is {checkpoint.model_type!r}, expected {' or '.join(families)}")
    _check_files(checkpoint)
    transformers_logging.disable_progress_bar()  # its bars would break up our one progress line
    try:
        model, report = family.model_class.from_pretrained(
            **_source(checkpoint, family), dtype=dtype, attn_implementation=attention, output_loading_info=True
        )
    except StrictDataclassError as error:  # transformers' configurations judge themselves
        raise CheckpointError(f"{path / 'config.json'}: contradicts itself ({' '.join(str(error).split())})") from error
    except (OSError, RuntimeError, ValueError, SafetensorError) as error:
        raise CheckpointError(f"{path}: weights cannot be loaded ({error})") from error
    missing = sorted(report["missing_keys"])
    if missing:
        raise CheckpointError(f"{path}: {len(missing)} weights are missing, first {missing[0]}")
    assert isinstance(model, PreTrainedModel)
    return model


def model_config(checkpoint: Checkpoint, family: Family) -> Any:
    """transformers' configuration of a checkpoint. It fills in what is left out, also within the dicts that it gets.

    Raises CheckpointError on a text model that cannot be trained and exported, with the reason.
    """
    check_text_model(checkpoint, family.text_models)
    config = family.model_class.config_class(**copy.deepcopy(dict(checkpoint.config)))
    check_layers(checkpoint, config.text_config)
    return config


def _source(checkpoint: Checkpoint, family: Family) -> dict[str, Any]:
    """from_pretrained's arguments that say what the model is and where its weights are."""
    config = model_config(checkpoint, family)
    if checkpoint.layout == family.model_type:
        return {"pretrained_model_name_or_path": checkpoint.path, "config": config, "local_files_only": True}
    weights = family.other_layouts[checkpoint.layout](checkpoint.path)
    return {"pretrained_model_name_or_path": None, "config": config, "state_dict": weights}


def _check_files(checkpoint: Checkpoint) -> None:
    """transformers' own message on a missing shard names neither the shard nor what to do."""
    files, path = checkpoint.files, checkpoint.path
    if files.has(WEIGHTS_INDEX):
        index = files.json(WEIGHTS_INDEX).get("weight_map")
        if not isinstance(index, dict):
            raise CheckpointError(f"{path / WEIGHTS_INDEX}: expected weight_map to be a JSON object")
        if missing := [shard for shard in sorted(set(index.values())) if not files.has(shard)]:
            raise CheckpointError(f"{path}: {len(missing)} weight files are missing, first {missing[0]}; fetch them again")
    elif not any(found.name != ADAPTER_WEIGHTS for found in weight_files(path)):
        raise CheckpointError(f"{path}: no *.safetensors weights found")
