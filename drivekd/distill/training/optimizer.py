"""The learning rate of a step."""

from __future__ import annotations

import math

from drivekd.config import OptimizerConfig


def learning_rate(settings: OptimizerConfig, step: int, num_steps: int) -> float:
    """Linear warm-up, then constant, or a half cosine that ends at 0. step: 0-based, of num_steps."""
    if step < settings.warmup_steps:
        return settings.learning_rate * (step + 1) / settings.warmup_steps
    if settings.schedule == "constant":
        return settings.learning_rate
    span = max(1, num_steps - settings.warmup_steps)
    return settings.learning_rate * 0.5 * (1 + math.cos(math.pi * (step - settings.warmup_steps) / span))
