"""The model that learns: which weights move, and how it is prepared for training."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel

from drivekd.config import RunConfig, StudentConfig
from drivekd.data.batch import Collator
from drivekd.distill.lora import add_adapters, hold_frozen_linears_in
from drivekd.models import language_model, load_model, modules_of
from drivekd.models.probe import CAPTURE_ATTENTION
from drivekd.models.swiglu import recompute_products
from drivekd.processor import load_processor
from drivekd.sample import Sample


@dataclass(frozen=True)
class Student:
    """names: the trainable parameters and what they are called; frozen_vision: no weight in front of the language model moves."""

    model: PreTrainedModel
    collate: Collator
    names: dict[nn.Parameter, str]
    frozen_vision: bool


def load_student(
    config: StudentConfig,
    device: torch.device,
    camera_size_px: tuple[int, int] | None = None,
    *,
    compute_dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> Student:
    """Load fp32 master weights and mark what trains: whole parts, or adapters (drawn from `seed`) in the language model.

    Raises CheckpointError, and ConfigError for adapters on layers that do not exist.
    """
    processor = load_processor(config.checkpoint, camera_size_px=camera_size_px)
    model = load_model(config.checkpoint, attention=CAPTURE_ATTENTION)
    model.requires_grad_(False)
    whole = set(config.train)
    if config.lora is not None:
        add_adapters(model, config.lora, config.checkpoint, seed=seed)
        whole -= {"language_model"}
    for name in whole:
        for module in modules_of(model, name):
            module.requires_grad_(True)
    if config.lora is not None and compute_dtype != torch.float32:
        hold_frozen_linears_in(model, compute_dtype)
    if config.gradient_checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": False})
    else:
        decoder: Any = language_model(model)
        recompute_products(decoder.layers)
    model.to(device).train()
    return Student(model, Collator(processor), trainable(model), not trains_vision(config))


def trainable(model: nn.Module) -> dict[nn.Parameter, str]:
    """The parameters that train, with their names, each once."""
    return {parameter: name for name, parameter in model.named_parameters() if parameter.requires_grad}


def seed_dropout(config: RunConfig, step: int, samples: Sequence[Sample]) -> None:
    """Before a micro-batch: LoRA's dropout is all that draws from torch's generators, and what it draws becomes a function of
    seed, step and the micro-batch's words. Resuming needs no stored generator, and it does not matter which process runs it."""
    if config.student.lora is not None and config.student.lora.dropout > 0:
        words = zlib.crc32("\n".join(f"{s.question}\n{s.answer}\n{[path.name for path in s.images]}" for s in samples).encode())
        torch.manual_seed(int(np.random.default_rng([config.seed, 6, step, words]).integers(2**63)))


def trains_vision(config: StudentConfig) -> bool:
    """Whether any weight in front of the language model moves."""
    return bool({"vision_encoder", "projector"} & set(config.train))
