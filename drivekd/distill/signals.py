"""What each capability distils, and from which layers (METHOD section 1).

perception  Ā at layer 0,        text rows x vision columns
planning    Ā at layer -2,       text rows x vision columns
reasoning   Ā at layers 0..-2,   whole map, each student layer against the mean of a group of teacher layers
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from drivekd.config import SignalConfig
from drivekd.data.sample import Capability
from drivekd.distill.losses import full_map_mse_per_sample, text_to_vision_mse_per_sample
from drivekd.errors import ConfigError

Grouping = Literal["window", "proportional"]
AttentionMaps = Mapping[int, Tensor]  # layer -> [B, S, S]


@dataclass(frozen=True)
class Signal:
    """student_layers[i] is compared with the uniform mean of teacher_groups[i]."""

    capability: Capability
    form: Literal["text_to_vision", "full_map"]
    student_layers: tuple[int, ...]
    teacher_groups: tuple[tuple[int, ...], ...]

    @property
    def teacher_layers(self) -> tuple[int, ...]:
        return tuple(sorted({layer for group in self.teacher_groups for layer in group}))


def group_layers(student_layers: Sequence[int], teacher_layers: Sequence[int], scheme: Grouping = "window") -> list[list[int]]:
    """The teacher layers whose mean each student layer learns from.

    window: the released stride-1 sliding window, width g = max(1, m - k + 1), clamped at the end, for k student and m teacher
    layers. proportional: student layer i takes its share [i m / k, (i + 1) m / k) of the teacher's depth, at least one layer.
    """
    k, m = len(student_layers), len(teacher_layers)
    if not k or not m:
        raise ValueError("group_layers needs at least one student layer and one teacher layer")
    if scheme == "window":
        width = max(1, m - k + 1)
        starts = [min(i, m - width) for i in range(k)]
        return [list(teacher_layers[start : start + width]) for start in starts]
    bounds = [(i * m // k, max(i * m // k + 1, -(-(i + 1) * m // k))) for i in range(k)]
    return [list(teacher_layers[start:end]) for start, end in bounds]


def signal_for(
    capability: Capability, config: SignalConfig, student_depth: int, teacher_depth: int, grouping: Grouping
) -> Signal:
    """The signal of one capability for a pair of models of these depths. Raises ConfigError on layers that do not exist."""
    student = _layers(capability, "student", config.student_layers, student_depth)
    teacher = _layers(capability, "teacher", config.teacher_layers, teacher_depth)
    groups = group_layers(student, teacher, grouping)
    return Signal(
        capability=capability,
        form="full_map" if capability == "reasoning" else "text_to_vision",
        student_layers=tuple(student),
        teacher_groups=tuple(tuple(group) for group in groups),
    )


def _layers(capability: Capability, who: str, chosen: Sequence[int], depth: int) -> list[int]:
    defaults: dict[Capability, list[int]] = {
        "perception": [0],
        "reasoning": list(range(depth - 1)),
        "planning": [depth - 2],
    }
    layers = [layer % depth if -depth <= layer < depth else layer for layer in chosen] or defaults[capability]
    if not layers:
        raise ConfigError(f"signals.{capability}.{who}_layers: the {who}'s {depth} layers leave none before the last; name one")
    if outside := [layer for layer in layers if not 0 <= layer < depth]:
        raise ConfigError(f"signals.{capability}.{who}_layers: {outside} outside the {who}'s {depth} layers (0..{depth - 1})")
    return sorted(set(layers))


def text_to_vision_pairs(vision_mask: Tensor, row_mask: Tensor) -> Tensor:
    """M[b, i, j] = row i is a text token that counts, column j a vision token. vision_mask, row_mask [B, S] -> [B, S, S]."""
    rows = row_mask & ~vision_mask
    return rows[:, :, None] & vision_mask[:, None, :]


def signal_loss(signal: Signal, student: AttentionMaps, teacher: AttentionMaps, vision_mask: Tensor, row_mask: Tensor) -> Tensor:
    """The signal's loss for each sample, [B].

    student, teacher: captured maps by layer, [B, S, S] each. row_mask [B, S]: true on the sample's tokens that count (no
    padding; the prompt alone where the answer must not be seen).
    """
    targets = [torch.stack([teacher[layer] for layer in group]).mean(0) for group in signal.teacher_groups]
    pairs = [(student[layer], target) for layer, target in zip(signal.student_layers, targets, strict=True)]
    if signal.form == "full_map":
        losses = [full_map_mse_per_sample(ours, theirs, row_mask) for ours, theirs in pairs]
    else:
        mask = text_to_vision_pairs(vision_mask, row_mask)
        losses = [text_to_vision_mse_per_sample(ours, theirs, mask) for ours, theirs in pairs]
    return torch.stack(losses).mean(0)
