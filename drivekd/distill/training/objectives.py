"""The losses of one micro-batch, by gradient row. B packs, S tokens, N samples, M supervised tokens, V vocabulary, D width."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from drivekd.config import RunConfig
from drivekd.data.batch import IGNORED_LABEL, Batch
from drivekd.distill.losses import cross_entropy_per_sample, logits_kl_per_sample
from drivekd.distill.maps import Maps, WantedLayers
from drivekd.distill.rows import Rows, sample_mixing
from drivekd.distill.signals import places_of, signal_loss
from drivekd.distill.teachers.features import ImageFeatures
from drivekd.distill.teachers.teachers import Samples, Teachers
from drivekd.models import language_model
from drivekd.models.decoder import run_decoder
from drivekd.models.probe import capture
from drivekd.sample import CAPABILITIES, Capability


@dataclass(frozen=True)
class StepSize:
    """Counts of the whole optimizer step, over every process: losses are sums divided by them, so that a short last micro-batch
    weighs rightly."""

    step: int
    num_labelled: int
    num_samples: int


@dataclass(frozen=True)
class Supervised:
    """The M supervised tokens: where they are predicted (row, position), what they are, and whose they are (sample)."""

    row: Tensor
    position: Tensor
    target: Tensor
    sample: Tensor


class Objectives:
    """Student and teachers on one micro-batch -> {row: scalar loss}."""

    def __init__(
        self,
        config: RunConfig,
        rows: Rows,
        student: Any,
        features: ImageFeatures,
        teachers: Teachers | None,
        compute_dtype: torch.dtype,
    ) -> None:
        self._student = student
        self._features = features
        self._teachers = teachers
        self._rows = rows
        self._signals = config.signals
        self._seed = config.seed
        self._compute_dtype = compute_dtype

    @contextmanager
    def losses(self, batch: Batch, size: StepSize) -> Iterator[dict[int, Tensor]]:
        """The losses by row. Backward belongs into the block: gradient checkpointing runs the captured layers again there."""
        mixing = sample_mixing(self._signals.mixing, batch.samples, self._seed, size.step).to(batch.pack.device)  # [N, 3]
        wanted = self._wanted(mixing)
        targets = self._targets(batch, wanted)
        layers = self._layers(wanted)
        maps = Maps(batch, layers)
        decoder: Any = language_model(self._student)
        with capture(decoder.layers, maps.requests, hidden=layers.hidden) as maps.captured:
            hidden = self._hidden(batch)
            losses = self._cross_entropy(batch, hidden, size) if bool(batch.labelled.any()) else {}
            for name, samples in wanted.items():
                if name in targets:
                    loss = self._signal(name, batch, samples, maps, targets[name])
                else:
                    loss = self._kl(name, batch, samples, hidden)
                weights = mixing[list(samples), CAPABILITIES.index(name)]
                losses[self._rows.followers[name]] = (weights * loss).sum() / size.num_samples
            targets.clear()
            maps.captured.release()  # autograd keeps the differences; the maps would be as much again
            yield losses

    def _hidden(self, batch: Batch) -> Tensor:
        """The student's last hidden states, [B, S, D]."""
        features = self._features(batch)
        device = batch.input_ids.device.type
        with torch.autocast(device, self._compute_dtype, enabled=self._compute_dtype != torch.float32):
            return run_decoder(self._student, batch.input_ids, batch.vision_mask, features, batch.attention_mask, batch.positions)

    def _wanted(self, mixing: Tensor) -> dict[Capability, Samples]:
        """Which samples learn from which teacher."""
        if self._teachers is None:
            return {}
        found = {name: tuple(mixing[:, CAPABILITIES.index(name)].nonzero()[:, 0].tolist()) for name in self._teachers.signals}
        return {name: samples for name, samples in found.items() if samples}

    def _targets(self, batch: Batch, wanted: dict[Capability, Samples]) -> dict[Capability, list[Tensor]]:
        if self._teachers is None:
            return {}
        maps = {name: samples for name, samples in wanted.items() if self._teachers.signals[name].loss != "kl"}
        return self._teachers.targets(batch, maps)

    def _layers(self, wanted: dict[Capability, Samples]) -> WantedLayers:
        if self._teachers is None:
            return WantedLayers.of(())
        signals = [self._teachers.signals[name] for name in wanted]
        return WantedLayers.of((signal, signal.student_layers) for signal in signals)

    def _cross_entropy(self, batch: Batch, hidden: Tensor, size: StepSize) -> dict[int, Tensor]:
        """lm_head runs on the supervised positions alone: at 150k words the rest would cost more than the model."""
        supervised = supervised_tokens(batch)
        logits = self._logits(hidden, supervised)
        per_sample = cross_entropy_per_sample(logits, supervised.target, supervised.sample, len(batch.samples))
        losses: dict[int, Tensor] = {}
        for index in sorted(set(batch.capability[batch.labelled].tolist())):
            row = self._rows.anchors[CAPABILITIES[index]]
            mine = per_sample[(batch.capability == index) & batch.labelled].sum() / size.num_labelled
            losses[row] = losses[row] + mine if row in losses else mine
        return losses

    def _logits(self, hidden: Tensor, supervised: Supervised) -> Tensor:
        with torch.autocast(hidden.device.type, self._compute_dtype, enabled=self._compute_dtype != torch.float32):
            logits: Tensor = self._student.lm_head(hidden[supervised.row, supervised.position])  # [M, V]
        return logits

    def _signal(self, name: Capability, batch: Batch, samples: Samples, maps: Maps, targets: list[Tensor]) -> Tensor:
        """The signal's loss of each of the samples, [len(samples)]. Empties `targets`."""
        assert self._teachers is not None
        signal = self._teachers.signals[name]
        view = batch.select(samples)
        places = places_of(signal.form, view.batch)
        student = (maps.at(signal, layer, view, places) for layer in signal.student_layers)
        return signal_loss(signal, student, _drained(targets), view.batch, places, self._signals.rows)

    def _kl(self, name: Capability, batch: Batch, samples: Samples, hidden: Tensor) -> Tensor:
        """KL between the teacher's and the student's words at the samples' supervised tokens, [len(samples)].

        Models of one tokenizer may pad their heads to different lengths (Qwen2.5-VL: 151,936 and 152,064 rows): what both have
        counts, which holds every word of the tokenizer.
        """
        assert self._teachers is not None
        teacher = self._teachers.by_capability[name]
        view = batch.select(samples)
        there, here = supervised_tokens(view.batch), supervised_tokens(batch)
        kept = torch.isin(here.sample, torch.tensor(samples, device=here.sample.device))
        student = self._logits(hidden, Supervised(here.row[kept], here.position[kept], here.target[kept], here.sample[kept]))
        asked = view.batch.to(teacher.device)
        logits = teacher.logits(asked, there.row.to(teacher.device), there.position.to(teacher.device)).to(hidden.device)
        words = min(student.shape[1], logits.shape[1])
        return logits_kl_per_sample(student[:, :words], logits[:, :words], there.sample, len(samples))


def _drained(targets: list[Tensor]) -> Iterator[Tensor]:
    """Each target once, and gone: as the differences that autograd keeps come, the targets go."""
    while targets:
        yield targets.pop(0)


def supervised_tokens(batch: Batch) -> Supervised:
    """Where the next token is an answer's; packs in order, hence the samples' tokens in order, too."""
    targets = batch.labels[:, 1:]
    row, position = (targets != IGNORED_LABEL).nonzero(as_tuple=True)  # [M], [M]
    places = torch.zeros(len(batch.input_ids), int(batch.question.max()) + 1, dtype=torch.long, device=row.device)
    places[batch.pack, batch.question] = torch.arange(len(batch.samples), device=row.device)
    return Supervised(row, position, targets[row, position], places[row, batch.segment[row, position + 1]])
