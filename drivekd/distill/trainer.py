"""`drivekd train`: one loop for supervised fine-tuning (no teachers) and multi-teacher distillation.

A step: draw samples -> micro-batches of one capability -> raw gradients by objective -> Gram matrix -> AGP coefficients ->
one AdamW update on fp32 masters. Everything random is a function of (seed, step), so resuming repeats the very same steps.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from drivekd.config import RunConfig
from drivekd.data.batch import Collator
from drivekd.data.order import SampleStream, micro_batches
from drivekd.data.sample import Sample
from drivekd.distill.checkpoint import newest_checkpoint, restore_optimizer, write_checkpoint
from drivekd.distill.gradients import GradientRows
from drivekd.distill.objectives import Objectives, row_shares, rows_for
from drivekd.distill.projection import Projection, project
from drivekd.distill.teachers import Teachers
from drivekd.errors import CheckpointError, ConfigError, TrainingError
from drivekd.log import logger
from drivekd.models.internvl import load_model, modules_of, num_layers
from drivekd.models.probe import CAPTURE_ATTENTION
from drivekd.processor import load_processor


@dataclass(frozen=True)
class TrainingSamples:
    """What a run learns from: labelled and unlabelled samples, and the ones its loss is validated on."""

    labelled: list[Sample]
    unlabelled: list[Sample]
    validation: list[Sample]


class Trainer:
    """Student, teachers, optimizer and data order of one run; `step()` does one optimizer step."""

    def __init__(self, config: RunConfig, samples: TrainingSamples) -> None:
        self.config = config
        self.device = resolve_device(config.training.device)
        if config.training.threads:
            torch.set_num_threads(config.training.threads)
        self._compute_dtype = torch.bfloat16 if config.training.precision == "bf16" else torch.float32
        self._load_models()
        self._collate = Collator(self.processor)
        self._samples = samples
        self._labelled = SampleStream(samples.labelled, seed=config.seed, stream=0)
        self._unlabelled = SampleStream(samples.unlabelled, seed=config.seed, stream=1)
        self.steps_done = 0

    def _load_models(self) -> None:
        config = self.config
        self.processor = load_processor(config.student.checkpoint)
        self.student = load_model(config.student.checkpoint, attention=CAPTURE_ATTENTION).to(self.device)
        depth = num_layers(self.student)
        self.teachers = (
            Teachers(config, self.processor, depth, self.device, self._compute_dtype) if config.teachers.paths() else None
        )
        self.student.requires_grad_(False)
        for name in config.student.train:
            for module in modules_of(self.student, name):
                module.requires_grad_(True)
        self.student.train()
        self._names = {p: name for name, p in self.student.named_parameters() if p.requires_grad}
        self._rows = rows_for(config)
        self._gradients = GradientRows(list(self._names), len(self._rows.names))
        self._objectives = Objectives(config, self._rows, self.student, self.teachers, self._compute_dtype)
        self.optimizer = torch.optim.AdamW(
            list(self._names), lr=config.optimizer.learning_rate, weight_decay=config.optimizer.weight_decay
        )

    def step(self) -> dict[str, Any]:
        """One optimizer step; returns its record for metrics.jsonl. Raises TrainingError on NaN or when memory ends."""
        started_s = time.perf_counter()
        try:
            losses, tokens = self._accumulate_gradients()
        except torch.OutOfMemoryError as error:
            raise TrainingError(
                f"step {self.steps_done + 1}: out of memory on {self.device}; lower training.micro_batch_size "
                f"(now {self.config.training.micro_batch_size}) or freeze more with student.train ({error})"
            ) from error
        projection, scales, norms = self._reconcile()
        learning_rate = self._learning_rate(self.steps_done)
        grad_norm = self._update(projection.coefficients * scales, learning_rate)
        self.steps_done += 1
        seconds = time.perf_counter() - started_s
        return {
            "step": self.steps_done,
            "loss": losses,
            "gradient_norm": dict(zip(self._rows.names, norms.tolist(), strict=True)) | {"update": grad_norm},
            "signal_scale": {name: float(scales[row]) for name, row in self._rows.followers.items()},
            "conflict_cosine": dict(zip(self._rows.followers, projection.cosines, strict=False)),
            "stage_1_fired": projection.stage_1_fired,
            "stage_2_fired": projection.stage_2_fired,
            "learning_rate": learning_rate,
            "tokens": tokens,
            "tokens_per_s": tokens / seconds,
            "seconds": seconds,
        }

    def _step_samples(self) -> list[Sample]:
        training = self.config.training
        labelled = self._labelled.slice(self.steps_done * training.batch_size, training.batch_size)
        extra = training.unlabelled_batch_size
        return labelled + (self._unlabelled.slice(self.steps_done * extra, extra) if extra else [])

    def _accumulate_gradients(self) -> tuple[dict[str, float], int]:
        """Fill the gradient rows; returns each term's mean loss over its own samples, and the number of tokens."""
        samples = self._step_samples()
        num_labelled = sum(sample.answer is not None for sample in samples)
        totals = dict.fromkeys(self._rows.names, 0.0)
        tokens = 0
        self._gradients.zero()
        for chunk in micro_batches(samples, self.config.training.micro_batch_size):
            batch = self._collate(chunk).to(self.device)
            tokens += batch.num_tokens
            losses = self._objectives(batch, num_labelled=num_labelled, num_samples=len(samples))
            last = max(losses)
            for row, loss in sorted(losses.items()):
                self._check_finite(f"the loss term {self._rows.names[row]!r}", float(loss.detach()))
                totals[self._rows.names[row]] += float(loss.detach())
                self._gradients.add(row, loss, retain_graph=row != last)
        shares = row_shares(self.config, self._rows, samples)
        return {name: total / shares[name] for name, total in totals.items() if shares[name] > 0}, tokens

    def _check_finite(self, what: str, value: float) -> None:
        if not math.isfinite(value):
            raise TrainingError(
                f"step {self.steps_done + 1}: {what} is {value}; training stopped before the update. "
                "Lower optimizer.learning_rate, or look at the last records of metrics.jsonl"
            )

    def _reconcile(self) -> tuple[Projection, Tensor, Tensor]:
        """AGP coefficients over the weighted gradients, the weights [N], and the raw norms [N]."""
        raw = self._gradients.gram().cpu()
        norms = raw.diagonal().sqrt()
        for name, norm in zip(self._rows.names, norms.tolist(), strict=True):
            self._check_finite(f"the gradient of the loss term {name!r}", norm)
        scales = self._scales(raw, norms)
        gram = raw * scales[:, None] * scales[None, :]
        settings = self.config.projection
        pairs = self._rows.pairs
        if settings.method == "sum" or not pairs:
            cosines = project(gram, range(1, len(pairs) + 1), pairs=pairs).cosines if pairs else ()
            return Projection(torch.ones_like(scales), cosines, 0, 0), scales, norms
        order = np.random.default_rng([self.config.seed, 2, self.steps_done]).permutation(len(pairs)) + 1
        projection = project(
            gram, order.tolist(), pairs=pairs, anchor_multiplicity=settings.anchor_multiplicity, stages=settings.stages
        )
        return self._keep_unpaired_anchors(projection), scales, norms

    def _keep_unpaired_anchors(self, projection: Projection) -> Projection:
        """CE of a capability that has no teacher takes part as it is."""
        paired = {anchor for anchor, _ in self._rows.pairs}
        for anchor in set(self._rows.anchors.values()) - paired:
            projection.coefficients[anchor] += 1.0
        return projection

    def _scales(self, gram: Tensor, norms: Tensor) -> Tensor:
        """static: the configured weight. relative: what makes the signal's gradient weight times as long as CE's."""
        scales = torch.ones_like(norms)
        anchors = sorted(set(self._rows.anchors.values()))
        ce_norm = gram[anchors][:, anchors].sum().clamp(min=0).sqrt()
        for name, row in self._rows.followers.items():
            weight = getattr(self.config.signals, name).weight
            relative = self.config.signals.weighting == "relative"
            scales[row] = weight * ce_norm / norms[row] if relative and norms[row] > 0 else weight
        return scales

    def _learning_rate(self, step: int) -> float:
        settings = self.config.optimizer
        if step < settings.warmup_steps:
            return settings.learning_rate * (step + 1) / settings.warmup_steps
        if settings.schedule == "constant":
            return settings.learning_rate
        span = max(1, self.config.training.steps - settings.warmup_steps)
        return settings.learning_rate * 0.5 * (1 + math.cos(math.pi * (step - settings.warmup_steps) / span))

    def _update(self, coefficients: Tensor, learning_rate: float) -> float:
        self._gradients.write_update(coefficients)
        clip_norm = self.config.optimizer.clip_norm or math.inf
        grad_norm = float(nn.utils.clip_grad_norm_(list(self._names), clip_norm))
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        self.optimizer.step()
        return grad_norm

    @torch.no_grad()
    def validate(self) -> float | None:
        """CE over the validation samples (mean over samples); None without any."""
        samples = self._samples.validation
        if not samples:
            return None
        supervised = Objectives(self.config, self._rows, self.student, None, self._compute_dtype)
        self.student.eval()
        total = 0.0
        for chunk in micro_batches(samples, self.config.training.micro_batch_size):
            losses = supervised(self._collate(chunk).to(self.device), num_labelled=1, num_samples=1)
            total += sum(float(loss) for loss in losses.values())
        self.student.train()
        return total / len(samples)

    def save(self, checkpoints: Path) -> None:
        write_checkpoint(
            checkpoints / f"step-{self.steps_done}",
            self.student,
            self.optimizer,
            self._names,
            self.config.student.checkpoint,
            self.config.prompts,
            self.steps_done,
            torch.get_num_threads(),
        )

    def resume(self, checkpoints: Path) -> None:
        """Continue from the newest complete checkpoint. Raises CheckpointError when there is none."""
        found = newest_checkpoint(checkpoints)
        if found is None:
            raise CheckpointError(f"{checkpoints}: no complete checkpoint to resume from; run without --resume in a new folder")
        directory, state = found
        weights = load_model(directory).state_dict()
        self.student.load_state_dict({name: value.to(self.device) for name, value in weights.items()})
        restore_optimizer(directory, self.optimizer, self._names)
        self.steps_done = state.step
        if state.threads != torch.get_num_threads():
            logger.warning(
                "%s ran on %d CPU threads, this run uses %d: the result will not be equal bit for bit; set training.threads=%d",
                *(directory, state.threads, torch.get_num_threads(), state.threads),
            )


def resolve_device(name: str) -> torch.device:
    """auto -> CUDA where there is one. Raises ConfigError when CUDA is asked for and missing."""
    available = torch.cuda.is_available()
    if name.startswith("cuda") and not available:
        raise ConfigError(f"training.device = {name!r}, but torch {torch.__version__} finds no CUDA device; use cpu or auto")
    return torch.device("cuda" if name == "auto" and available else "cpu" if name == "auto" else name)
