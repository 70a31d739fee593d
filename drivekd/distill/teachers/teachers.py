"""Frozen teachers: loaded at most once per checkpoint, cut behind the last wanted layer, asked only for what the signals compare.

A forward pass ends inside the last wanted layer, as soon as its map is there: perception costs embeddings and one q/k product.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor
from transformers import PreTrainedModel

from drivekd.config import RunConfig
from drivekd.data.batch import Batch, View
from drivekd.distill.maps import Maps, WantedLayers
from drivekd.distill.signals import Signal, places_of, signal_for
from drivekd.distill.teachers.features import ImageFeatures, Towers
from drivekd.distill.teachers.layer_choices import signal_config
from drivekd.distill.teachers.signal_cache import SignalCache
from drivekd.errors import ConfigError
from drivekd.hf_checkpoint import Checkpoint, load_processor, stated_tiles
from drivekd.models import language_model, language_shape, load_model, num_layers
from drivekd.models.decoder import run_decoder
from drivekd.models.probe import CAPTURE_ATTENTION, capture
from drivekd.processor import INTERNVL, Processor, num_words
from drivekd.sample import Capability

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
Samples: TypeAlias = tuple[int, ...]  # indices into a batch's samples


class Teacher:
    """One checkpoint and what any capability wants of it. Weights are loaded when first needed: a full cache needs none."""

    def __init__(self, checkpoint: Checkpoint, towers: Towers, device: torch.device, dtype: torch.dtype) -> None:
        self.checkpoint = checkpoint
        self.shape = language_shape(checkpoint)
        self.device = device
        self.dtype = dtype
        self.signals: Sequence[Signal] = ()
        self._towers = towers

    @cached_property
    def model(self) -> Any:
        """The model, without the layers behind the last one that a signal reads, and without its head; logits need both."""
        model: Any = load_model(self.checkpoint, attention=CAPTURE_ATTENTION, dtype=self.dtype).eval().requires_grad_(False)
        if not any(signal.loss == "kl" for signal in self.signals):
            decoder: Any = language_model(model)
            del decoder.layers[max(layer for signal in self.signals for layer in signal.teacher_layers) + 1 :]
            model.lm_head = torch.nn.Identity()
        return model.to(self.device)

    @cached_property
    def features(self) -> ImageFeatures:
        """Its images as its language model sees them; loads the model."""
        return self._towers.of(self.model, self.device, self.dtype)

    @torch.no_grad()
    def maps(self, batch: Batch, signals: Sequence[Signal]) -> Maps:
        """Run the batch as far as these signals need."""
        wanted = WantedLayers.of((signal, signal.teacher_layers) for signal in signals)
        maps = Maps(batch, wanted)
        decoder: Any = language_model(self.model)
        with capture(decoder.layers, maps.requests, hidden=wanted.hidden, stop_after_last=True) as maps.captured:
            self._run(batch)
        return maps

    @torch.no_grad()
    def logits(self, batch: Batch, sample: Tensor, position: Tensor) -> Tensor:
        """Logits [M, V] at M places (row of the batch, position)."""
        hidden = self._run(batch)
        logits: Tensor = self.model.lm_head(hidden[sample, position])
        return logits

    def _run(self, batch: Batch) -> Tensor:
        features = self.features(batch)
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
            return run_decoder(self.model, batch.input_ids, batch.vision_mask, features, batch.attention_mask, batch.positions)


class Teachers:
    """The capabilities' signals and the models that give them; several capabilities may share one checkpoint."""

    def __init__(
        self, config: RunConfig, student: PreTrainedModel, towers: Towers, device: torch.device, dtype: torch.dtype
    ) -> None:
        """device, dtype: the student's; `teachers` in the configuration may name others."""
        checkpoints = open_teachers(config, towers.processor)
        device = device if config.teachers.device == "student" else torch.device(config.teachers.device)
        dtype = dtype if config.teachers.precision == "training" else DTYPES[config.teachers.precision]
        models = {opened: Teacher(opened, towers, device, dtype) for opened in checkpoints.values()}
        self.by_capability: Mapping[Capability, Teacher] = {name: models[opened] for name, opened in checkpoints.items()}

        depth = num_layers(student)

        def signal(name: Capability, teacher: Teacher) -> Signal:
            chosen = signal_config(name, config.signals, depth, teacher.shape.layers)
            return signal_for(name, chosen, depth, teacher.shape.layers, config.signals.grouping)

        self.signals: Mapping[Capability, Signal] = {name: signal(name, teacher) for name, teacher in self.by_capability.items()}
        for teacher in models.values():
            teacher.signals = [self.signals[name] for name, other in self.by_capability.items() if other is teacher]
        self.caches: dict[Capability, SignalCache] = {}

    def targets(self, batch: Batch, wanted: Mapping[Capability, Samples]) -> dict[Capability, list[Tensor]]:
        """The maps that each attention or hidden-state signal compares with: one for each of its student layers, [b, R, C].

        wanted: which samples learn from which teacher. Capabilities that ask one teacher about the same samples share a pass.
        """
        found: dict[Capability, list[Tensor]] = {}
        groups: dict[tuple[int, Samples], list[Capability]] = {}
        views = {samples: batch.select(samples) for samples in wanted.values()}
        for name, samples in wanted.items():
            cached = self.caches[name].get(views[samples]) if name in self.caches else None
            if cached is not None:
                found[name] = [block.to(batch.input_ids.device) for block in cached]
            else:
                groups.setdefault((id(self.by_capability[name]), samples), []).append(name)
        for (_, samples), names in groups.items():
            found |= self._live(names, views[samples], batch.input_ids.device)
        return found

    def _live(self, names: Sequence[Capability], view: View, device: torch.device) -> dict[Capability, list[Tensor]]:
        teacher = self.by_capability[names[0]]
        asked = view.batch.to(teacher.device)
        maps = teacher.maps(asked, [self.signals[name] for name in names])
        found: dict[Capability, list[Tensor]] = {}
        for name in names:
            signal = self.signals[name]
            places = places_of(signal.form, asked)
            targets = [
                _mean_of([maps.at(signal, layer, asked.whole(), places) for layer in group]) for group in signal.teacher_groups
            ]
            if name in self.caches:
                self.caches[name].put(view, targets)
                targets = self.caches[name].get(view) or targets  # rounded as every later use will find them
            found[name] = [target.to(device) for target in targets]
        return found


def _mean_of(maps: Sequence[Tensor]) -> Tensor:
    """The uniform mean of a group of layers' maps."""
    total = maps[0]
    for other in maps[1:]:
        total = total + other
    return total / len(maps)


def open_teachers(config: RunConfig, student: Processor) -> dict[Capability, Checkpoint]:
    """Each capability's checkpoint, opened once a path. Raises ConfigError when one does not fit the student."""
    opened: dict[Path, Checkpoint] = {}
    for capability, path in config.teachers.paths().items():
        if path not in opened:
            opened[path] = Checkpoint.open(path).with_grounding(config.data.grounding_tokens)
            check_same_view(student, opened[path], config.data.camera_size_px, f"teachers.{capability} = {path}")
    return {capability: opened[path] for capability, path in config.teachers.paths().items()}


def check_same_view(student: Processor, teacher: Checkpoint, camera_size_px: tuple[int, int] | None, source: str) -> None:
    """Raises ConfigError naming what the two see or read differently. A teacher that states no tiles is given the student's."""
    check_same_family(student.model_type, teacher.model_type, source)
    own, students = stated_tiles(teacher), str(student.images.tiling)
    if own not in (None, students):
        raise ConfigError(
            f"{source}: the teacher was trained with tiles {own} a camera, the student sees {students}; attention maps compare "
            f"token by token. Set data.tiles to {own}, or distil from a teacher of {students}"
        )
    tiles = students if student.model_type == INTERNVL else None
    check_same_tokens(student, load_processor(teacher, camera_size_px=camera_size_px, tiles=tiles), source)
    check_words(language_shape(teacher).words, student, source)


def check_same_family(student: str, teacher: str, source: str) -> None:
    """Raises ConfigError: attention maps of different families belong to different tokens."""
    if student != teacher:
        raise ConfigError(
            f"{source}: the teacher is a {teacher!r} model, the student a {student!r} one; attention maps compare token by "
            "token, and the two families cut images and text differently. Distil within one family"
        )


def check_same_tokens(student: Processor, teacher: Processor, source: str) -> None:
    """Attention maps compare position by position, so both models must cut images and text alike. Raises ConfigError."""
    if student.chat != teacher.chat or student.images != teacher.images:
        raise ConfigError(
            f"{source}: teacher and student must share chat template, tile size and tokens per image; "
            f"student {student.images} -> {student.chat.tokens_per_image} tokens, "
            f"teacher {teacher.images} -> {teacher.chat.tokens_per_image} tokens"
        )
    if (students := student.tokenizer.get_vocab()) != (teachers := teacher.tokenizer.get_vocab()):
        other = min(students.items() ^ teachers.items(), key=lambda item: (item[1], item[0]))[0]
        raise ConfigError(
            f"{source}: teacher and student must have the same tokenizer; {other!r} is {teachers.get(other, 'no token')} in the "
            f"teacher's and {students.get(other, 'no token')} in the student's. Distil within one family"
        )


def check_words(rows: int, student: Processor, source: str) -> None:
    """A model of `rows` words against the tokenizer that both use; padding differs within a family. Raises ConfigError."""
    if rows < (needed := num_words(student.tokenizer)):
        raise ConfigError(f"{source}: config.json says {rows} words, the tokenizer has ids up to {needed - 1}: they do not fit")
