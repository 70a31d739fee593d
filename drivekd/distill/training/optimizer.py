"""AdamW, the learning rate of a step, and AdamW's moments as a checkpoint keeps them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from drivekd.config import OptimizerConfig
from drivekd.distill.training.rounding import LOG_SCALES
from drivekd.distill.training.sharding import placed
from drivekd.errors import CheckpointError


def adamw(names: Mapping[nn.Parameter, str], settings: OptimizerConfig) -> torch.optim.AdamW:
    """Over what trains. Scales of rounded weights do not decay: towards 1 is no smaller model."""
    weights = [parameter for parameter, name in names.items() if not is_scale(name)]
    scales = [parameter for parameter, name in names.items() if is_scale(name)]
    groups: list[dict[str, Any]] = [{"params": weights}, *([{"params": scales, "weight_decay": 0.0}] if scales else [])]
    return torch.optim.AdamW(groups, lr=settings.learning_rate, weight_decay=settings.weight_decay)


def is_scale(name: str) -> bool:
    """Whether a parameter is the logarithms of a rounded weight's scales."""
    return name.endswith(f".{LOG_SCALES}")


def learning_rate(settings: OptimizerConfig, step: int, num_steps: int) -> float:
    """Linear warm-up, then constant, or a half cosine that ends at 0. step: 0-based, of num_steps."""
    if step < settings.warmup_steps:
        return settings.learning_rate * (step + 1) / settings.warmup_steps
    if settings.schedule == "constant":
        return settings.learning_rate
    span = max(1, num_steps - settings.warmup_steps)
    return settings.learning_rate * 0.5 * (1 + math.cos(math.pi * (step - settings.warmup_steps) / span))


OPTIMIZER_FILE = "optimizer.safetensors"


def optimizer_tensors(optimizer: torch.optim.Optimizer, names: Mapping[nn.Parameter, str]) -> dict[str, Tensor]:
    """AdamW's state as FIELD/PARAMETER -> tensor, sharded where the parameter is."""
    return {
        f"{field}/{name}": value.detach()
        for parameter, name in names.items()
        for field, value in optimizer.state[parameter].items()
    }


def restore_optimizer(directory: Path, optimizer: torch.optim.Optimizer, names: Mapping[nn.Parameter, str]) -> None:
    """Put AdamW's moments and step counts back. Raises CheckpointError when they are of another model."""
    tensors = load_file(directory / OPTIMIZER_FILE)
    for parameter, name in names.items():
        state = {field: tensors.get(f"{field}/{name}") for field in ("step", "exp_avg", "exp_avg_sq")}
        step, mean, square = state.values()
        if step is None or mean is None or square is None or mean.shape != parameter.shape:
            raise CheckpointError(f"{directory / OPTIMIZER_FILE}: no optimizer state for {name}; it is of another student")
        optimizer.state[parameter] = {
            "step": step,
            "exp_avg": placed(mean, parameter),
            "exp_avg_sq": placed(square, parameter),
        }
