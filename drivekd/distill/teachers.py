"""Frozen teachers: loaded once per checkpoint, cut behind the last wanted layer, asked only for attention maps."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from drivekd.config import RunConfig
from drivekd.data.batch import Batch
from drivekd.data.sample import Capability
from drivekd.distill.signals import AttentionMaps, Signal, signal_for
from drivekd.errors import ConfigError
from drivekd.models.internvl import load_model, num_layers
from drivekd.models.probe import CAPTURE_ATTENTION, capture_attention
from drivekd.processor import Processor, load_processor


class Teacher:
    """One checkpoint and the layers that any capability wants of it."""

    def __init__(self, checkpoint: Path, device: torch.device, compute_dtype: torch.dtype) -> None:
        self._model = load_model(checkpoint, attention=CAPTURE_ATTENTION).eval().requires_grad_(False).to(device)
        self._compute_dtype = compute_dtype
        self.depth = num_layers(self._model)

    def keep_layers(self, last: int) -> None:
        """Drop what lies behind layer `last`: its map is the last thing anyone reads. The head is never run."""
        layers = self._model.model.language_model.layers
        del layers[last + 1 :]

    @torch.no_grad()
    def attention(self, batch: Batch, layers: tuple[int, ...]) -> AttentionMaps:
        """Head-mean maps [B, S, S] of these layers."""
        core = self._model.model
        with (
            torch.autocast(batch.input_ids.device.type, self._compute_dtype, enabled=self._compute_dtype != torch.float32),
            capture_attention(core.language_model.layers, layers) as maps,
        ):
            core(
                input_ids=batch.input_ids,
                pixel_values=batch.pixel_values,
                attention_mask=batch.attention_mask.long(),
                use_cache=False,
            )
        return maps


class Teachers:
    """The capabilities' signals and the models that give them; several capabilities may share one checkpoint."""

    def __init__(
        self, config: RunConfig, student: Processor, student_depth: int, device: torch.device, compute_dtype: torch.dtype
    ) -> None:
        paths = config.teachers.paths()
        for capability, path in paths.items():
            check_same_tokens(student, load_processor(path), f"teachers.{capability} = {path}")
        models = {path: Teacher(path, device, compute_dtype) for path in set(paths.values())}
        self._by_capability: Mapping[Capability, Teacher] = {name: models[path] for name, path in paths.items()}
        self.signals: Mapping[Capability, Signal] = {
            name: signal_for(name, getattr(config.signals, name), student_depth, teacher.depth, config.signals.grouping)
            for name, teacher in self._by_capability.items()
        }
        for teacher in models.values():
            users = [name for name, other in self._by_capability.items() if other is teacher]
            teacher.keep_layers(max(layer for name in users for layer in self.signals[name].teacher_layers))

    def attention(self, capability: Capability, batch: Batch) -> dict[int, Tensor]:
        """The maps that this capability's signal compares with."""
        return dict(self._by_capability[capability].attention(batch, self.signals[capability].teacher_layers))


def check_same_tokens(student: Processor, teacher: Processor, source: str) -> None:
    """Attention maps compare position by position, so both models must cut images and text alike. Raises ConfigError."""
    if student.chat != teacher.chat or student.images != teacher.images:
        raise ConfigError(
            f"{source}: teacher and student must share chat template, tile size and tokens per image; "
            f"student {student.images.size_px} px -> {student.chat.tokens_per_image} tokens, "
            f"teacher {teacher.images.size_px} px -> {teacher.chat.tokens_per_image} tokens"
        )
    if student.tokenizer.get_vocab() != teacher.tokenizer.get_vocab():
        raise ConfigError(f"{source}: teacher and student must have the same tokenizer; distil within one family")
