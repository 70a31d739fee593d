"""Footprints of a trainer whose largest step has run, by device; and settings tried out where not even that could be done."""

from __future__ import annotations

import gc
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from drivekd.config import LoraConfig, RunConfig
from drivekd.distill.dry_run.footprint import Footprint, Shape
from drivekd.distill.dry_run.measured_steps import Measurement, frozen_towers, resident_bytes, weights_bytes
from drivekd.distill.teachers.features import ImageFeatures
from drivekd.distill.training.memory import is_out_of_memory, peak_bytes, smaller_settings, total_bytes
from drivekd.distill.training.parallel import resolve_device
from drivekd.distill.training.trainer import Trainer, TrainingSamples
from drivekd.models import language_model, num_layers

MEMINFO = Path("/proc/meminfo")


def footprints(trainer: Trainer, measurement: Measurement, base_bytes: int, num_images: int) -> list[Footprint]:
    """One for each device that the run uses, the student's first, the host last.

    base_bytes: what the process held before it loaded anything. num_images: distinct pictures of the whole run.
    """
    teachers = list(dict.fromkeys(trainer.teachers.by_capability.values())) if trainer.teachers is not None else []
    devices = dict.fromkeys([str(_numbered(trainer.device)), *(str(_numbered(teacher.device)) for teacher in teachers), "cpu"])
    found = []
    for name in devices:
        device, mine = torch.device(name), name == str(_numbered(trainer.device))
        rows_here = mine and not (trainer.config.training.offload_gradients and device.type == "cuda")
        part = Footprint(
            device=name,
            student=weights_bytes(trainer.student) if mine else 0,
            teachers=sum(weights_bytes(teacher.model) for teacher in teachers if str(_numbered(teacher.device)) == name),
            rounded=trainer.rounding.most_bytes if mine and trainer.rounding is not None else 0,
            optimizer=_optimizer_bytes(trainer) if mine else 0,
            gradients=measurement.rows.most_bytes if rows_here else 0,
            growth=sum(_growth(trainer, tower, measurement.num_images, num_images) for tower in _towers_on(trainer, name)),
            other=base_bytes if device.type == "cpu" else 0,
            available=available_bytes(device),
        )
        rest = peak_bytes(device) - (part.total - part.growth)
        found.append(replace(part, activations=max(0, rest)))
    return found


def available_bytes(device: torch.device) -> int:
    """What this process may hold: what it holds now and what is free. On a host the launcher's processes share what is free."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device)
    sharing = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    lines = dict(line.split(":", 1) for line in MEMINFO.read_text(encoding="utf-8").splitlines())
    free = int(lines["MemAvailable"].split()[0]) * 1024
    return min(total_bytes(device) // sharing, resident_bytes() + free // sharing)


def shape_of(trainer: Trainer, tokens: int, packs: int) -> Shape:
    """packs: of the largest micro-batch, tokens: of its longest pack."""
    decoder: Any = language_model(trainer.student)
    lora = trainer.config.student.lora
    targets = tuple((lora or LoraConfig()).targets)
    linears = [module for name, module in decoder.named_modules() if name.endswith(targets) and hasattr(module, "in_features")]
    samples = [*trainer.samples.labelled, *trainer.samples.unlabelled]
    width = int(trainer.student.config.text_config.hidden_size)
    itemsize = 2 if trainer.config.training.precision == "bf16" else 4
    return Shape(
        packs=packs,
        tokens=tokens,
        sample_tokens=max(sum(trainer.collate.num_tokens(sample)) for sample in samples),
        layers=num_layers(trainer.student),
        layer_input_bytes=packs * tokens * width * itemsize,
        trainable=sum(parameter.numel() for parameter in trainer.names),
        adapter_width=sum(module.in_features + module.out_features for module in linears),
    )


def smallest_that_runs(config: RunConfig, samples: TrainingSamples) -> str:
    """After running out of memory: lower one setting after the other until a step runs; what was lowered, and what it took."""
    device = resolve_device(config.training.device)
    settings: dict[str, str] = {}
    while ladder := smaller_settings(config, device):
        key, value = ladder[0]
        settings[key] = value
        config = with_setting(config, key, value)
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(device)
        used = _tried(config, samples)
        if used is not None:
            changes = " ".join(f"--set {key}={value}" for key, value in settings.items())
            return f"Cheapest change that fits: {changes}, {used / 1e9:,.1f} GB measured on {device}."
    return "No setting makes it fit; take a smaller model, a larger device or more devices with FSDP2."


def with_setting(config: RunConfig, key: str, value: str) -> RunConfig:
    """The configuration with one `--set key=value`."""
    tree = config.model_dump()
    *parents, leaf = key.split(".")
    node = tree
    for name in parents:
        node = node[name]
    node[leaf] = yaml.safe_load(value)
    return RunConfig.model_validate(tree)


def feature_bytes(trainer: Trainer, tower: ImageFeatures) -> int:
    """Of one picture in memory."""
    width = int(tower.model.config.text_config.hidden_size)
    return trainer.collate.processor.chat.tokens_per_image * width * (4 if tower.dtype == torch.float32 else 2)


def _tried(config: RunConfig, samples: TrainingSamples) -> int | None:
    """The peak bytes of two steps; None when memory runs out again."""
    try:
        trainer = Trainer(config, samples)
        trainer.step()
        trainer.step()
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        return None
    return peak_bytes(trainer.device)


def _growth(trainer: Trainer, tower: ImageFeatures, now: int, later: int) -> int:
    each = feature_bytes(trainer, tower)
    most = trainer.config.cache.memory_mb << 20
    return min(most, later * each) - min(most, now * each)


def _towers_on(trainer: Trainer, device: str) -> list[ImageFeatures]:
    return [tower for tower in frozen_towers(trainer) if str(_numbered(next(tower.model.parameters()).device)) == device]


def _optimizer_bytes(trainer: Trainer) -> int:
    tensors = [value for state in trainer.optimizer.state.values() for value in state.values() if isinstance(value, Tensor)]
    return sum(getattr(value, "to_local", lambda value=value: value)().nbytes for value in tensors)


def _numbered(device: torch.device) -> torch.device:
    """cuda -> cuda:0, so that one device has one name."""
    return torch.device("cuda", torch.cuda.current_device()) if device == torch.device("cuda") else device
