"""The model that learns: which weights move, and how it is prepared for training.

LoRA (Hu et al. 2022, arXiv 2106.09685): low-rank adapters in the language model's linear layers, by peft.

    y = W x + (alpha / rank) B A dropout(x)        W frozen, A [rank, in] drawn, B [out, rank] zero at the start

peft's layers replace the linear layers in place, so that the model keeps its class, its parts and its attention modules: captured
attention is computed from adapted queries and keys. Adapters are fp32 under bf16 compute, as all masters are. Frozen linear
weights are then held in bf16: autocast would round them to it in every pass, so that the results are the same to the bit, and an
8B model takes 16 GB instead of 32. What is merged at the end is the fp32 checkpoint, not these.
"""

from __future__ import annotations

import difflib
import re
import zlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import LoraConfig as PeftLoraConfig
from peft import inject_adapter_in_model
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from drivekd.config import LoraConfig, RunConfig, StudentConfig
from drivekd.data.batch import Collator
from drivekd.distill.teachers.features import trains_vision
from drivekd.distill.teachers.teachers import check_words
from drivekd.distill.training.rounding import ADAPTER, Rounding, adapted_weight
from drivekd.errors import ConfigError
from drivekd.hf_checkpoint import Checkpoint, load_processor
from drivekd.models import language_model, language_shape, load_model, modules_of
from drivekd.models.probe import CAPTURE_ATTENTION
from drivekd.models.swiglu import recompute_products
from drivekd.sample import Sample

_DOWN, _UP = f".lora_A.{ADAPTER}.weight", f".lora_B.{ADAPTER}.weight"


def add_adapters(model: PreTrainedModel, config: LoraConfig, source: Path, *, seed: int) -> None:
    """Put adapters on the named linear layers of the language model; nothing else of the model is trainable afterwards.

    source: the checkpoint of the model, which the adapter's own file names. A is drawn from `seed`, and torch's generators stay
    as they are. Raises ConfigError for a target that no linear layer is called.
    """
    check_targets(model, config.targets)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        inject_adapter_in_model(_peft_config(model, config, source), model, ADAPTER)


def check_targets(model: PreTrainedModel, targets: list[str]) -> None:
    """Raises ConfigError naming what there is. A target is the end of a module's dotted name: q_proj, layers.0.mlp.up_proj."""
    layers = [name for name, module in language_model(model).named_modules() if isinstance(module, nn.Linear)]
    known = list(dict.fromkeys(name.rpartition(".")[2] for name in layers))
    for target in targets:
        if not any(f".{name}".endswith(f".{target}") for name in layers):
            near = difflib.get_close_matches(target, known, cutoff=0.4)
            meant = f"Did you mean {' or '.join(near)}? " if near else ""
            raise ConfigError(
                f"student.lora.targets: no linear layer of the language model is called {target!r}. {meant}"
                f"There are {', '.join(known)}"
            )


def hold_frozen_linears_in(model: PreTrainedModel, dtype: torch.dtype, *, keep: Collection[nn.Module] = ()) -> None:
    """Frozen weights and biases of the language model's linear layers in the dtype of autocast, but for the modules of `keep`."""
    for module in language_model(model).modules():
        if isinstance(module, nn.Linear) and module not in keep:
            for parameter in module.parameters():
                if not parameter.requires_grad:
                    parameter.data = parameter.data.to(dtype)


def merged(base: Mapping[str, Tensor], trained: Mapping[str, Tensor], config: LoraConfig) -> dict[str, Tensor]:
    """The base's weights by name, with W + (alpha / rank) B A where an adapter is, and the other trained weights in their places.

    trained: what trains by name, adapters among it. Only what changes is returned; everything fp32 on the base's device.
    """
    changed: dict[str, Tensor] = {}
    for name, value in trained.items():
        if name.endswith(_DOWN):
            layer = name.removesuffix(_DOWN)
            weight = base[f"{layer}.weight"]
            summed = adapted_weight(weight.to(value.device), trained[layer + _UP], value, config)  # where, and as, training adds
            changed[f"{layer}.weight"] = summed.to(weight.device)  # [out, in]
        elif not name.endswith(_UP):
            changed[name] = value
    return changed


def write_adapter(
    directory: Path, model: PreTrainedModel, config: LoraConfig, source: Path, trained: Mapping[str, Tensor]
) -> None:
    """adapter_config.json and adapter_model.safetensors, as peft.PeftModel.from_pretrained(base, directory) reads them."""
    directory.mkdir()
    peft_config = _peft_config(model, config, source)
    peft_config.inference_mode = True
    peft_config.save_pretrained(str(directory))
    adapters = {name: value for name, value in trained.items() if name.endswith((_DOWN, _UP))}
    renamed = {
        f"base_model.model.{name.replace(f'.{ADAPTER}.', '.')}": value.cpu().contiguous() for name, value in adapters.items()
    }
    save_file(renamed, directory / "adapter_model.safetensors", metadata={"format": "pt"})


def _peft_config(model: PreTrainedModel, config: LoraConfig, source: Path) -> PeftLoraConfig:
    """Targets as one pattern over whole names: InternVL's vision tower has a q_proj, too."""
    (prefix,) = (name for name, module in model.named_modules() if module is language_model(model))
    ends = "|".join(map(re.escape, config.targets))
    return PeftLoraConfig(
        base_model_name_or_path=str(source),
        r=config.rank,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        target_modules=rf"{re.escape(prefix)}\.(.*\.)?({ends})",
    )


@dataclass(frozen=True)
class Student:
    """names: the trainable parameters and what they are called; frozen_vision: no weight in front of the language model moves.
    rounding: None where it computes with its weights as they are."""

    model: PreTrainedModel
    collate: Collator
    names: dict[nn.Parameter, str]
    frozen_vision: bool
    rounding: Rounding | None = None


def load_student(
    checkpoint: Checkpoint,
    config: StudentConfig,
    device: torch.device,
    camera_size_px: tuple[int, int] | None = None,
    tiles: str | None = None,
    *,
    compute_dtype: torch.dtype = torch.float32,
    held_dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> Student:
    """Load fp32 master weights and mark what trains: whole parts, or adapters (drawn from `seed`) in the language model.

    camera_size_px, tiles: as in load_processor. compute_dtype: of autocast; held_dtype: of linear layers that adapters leave
    frozen.

    Raises CheckpointError, and ConfigError for adapters on layers, or patterns of layers, that do not exist.
    """
    processor = load_processor(checkpoint, camera_size_px=camera_size_px, tiles=tiles)
    check_words(language_shape(checkpoint).words, processor, f"student.checkpoint = {checkpoint.path}")
    model = load_model(checkpoint, attention=CAPTURE_ATTENTION)
    model.requires_grad_(False)
    whole = set(config.train)
    if config.lora is not None:
        add_adapters(model, config.lora, checkpoint.path, seed=seed)
        whole -= {"language_model"}
    for name in whole:
        for module in modules_of(model, name):
            module.requires_grad_(True)
    rounding = None
    if config.quantization is not None:
        rounding = Rounding(model, config.quantization, checkpoint, lora=config.lora, compute_dtype=compute_dtype)
    if config.lora is not None and held_dtype != torch.float32:
        hold_frozen_linears_in(model, held_dtype, keep=rounding.masters if rounding is not None else ())
    if config.gradient_checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": False})
    else:
        decoder: Any = language_model(model)
        recompute_products(decoder.layers)
    model.to(device).train()
    return Student(model, Collator(processor), trainable(model), not trains_vision(config), rounding)


def trainable(model: nn.Module) -> dict[nn.Parameter, str]:
    """The parameters that train, with their names, each once."""
    return {parameter: name for name, parameter in model.named_parameters() if parameter.requires_grad}


def seed_dropout(config: RunConfig, step: int, samples: Sequence[Sample]) -> None:
    """Before a micro-batch: LoRA's dropout is all that draws from torch's generators, and what it draws becomes a function of
    seed, step and the micro-batch's words. Resuming needs no stored generator, and it does not matter which process runs it."""
    if config.student.lora is not None and config.student.lora.dropout > 0:
        words = zlib.crc32("\n".join(f"{s.question}\n{s.answer}\n{[path.name for path in s.images]}" for s in samples).encode())
        torch.manual_seed(int(np.random.default_rng([config.seed, 6, step, words]).integers(2**63)))
