"""`drivekd train`: one loop for supervised fine-tuning (no teachers), single-teacher and multi-teacher distillation.

A step: draw packs -> micro-batches -> raw gradients by objective -> Gram matrix -> AGP coefficients -> one AdamW update on fp32
masters. Everything random is a function of (seed, step), so resuming repeats the very same steps.
"""

from __future__ import annotations

import math
import time
from collections.abc import Collection, Hashable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from drivekd.config import RunConfig
from drivekd.data.batch import Batch
from drivekd.data.packs import Pack, PackStream, frame_packs, micro_batches, single_packs
from drivekd.data.traces import Traces, traces_of
from drivekd.distill.reconcile import Reconciler, ReconcileRecord, ReconcileSettings, merge_records
from drivekd.distill.rows import Rows, row_shares, rows_for, sample_mixing
from drivekd.distill.teachers.caches import Caches, cache_size, fill
from drivekd.distill.teachers.features import ImageFeatures, Towers
from drivekd.distill.teachers.teachers import Teachers
from drivekd.distill.training.accuracy import accuracy_samples, summed_scores
from drivekd.distill.training.checkpoint import (
    SavedStudent,
    TrainingState,
    Validations,
    newest_checkpoint,
    restore_weights,
    write_checkpoint,
)
from drivekd.distill.training.gradients import GradientRows
from drivekd.distill.training.objectives import Objectives, StepSize
from drivekd.distill.training.optimizer import adamw, is_scale, learning_rate, optimizer_tensors, restore_optimizer
from drivekd.distill.training.parallel import Turn, join, resolve_device
from drivekd.distill.training.run_contract import run_contract, training_traces, with_data
from drivekd.distill.training.sharding import gathered, place, whole_number
from drivekd.distill.training.student import load_student, seed_dropout
from drivekd.distill.weighting import CE, DynamicSettings, weighting_for
from drivekd.errors import ConfigError, TrainingError
from drivekd.hf_checkpoint import Checkpoint
from drivekd.host_memory import return_freed_memory, return_large_blocks
from drivekd.log import logger
from drivekd.quantization.form import WeightForm
from drivekd.sample import Sample

__all__ = ["Trainer", "TrainingSamples", "resolve_device"]

_TOKENS = "tokens"  # counted beside the losses


@dataclass(frozen=True)
class TrainingSamples:
    """What a run learns from: labelled and unlabelled samples, and the ones its loss is validated on; their pictures are in the
    order of `cameras`, () where nothing names them."""

    labelled: list[Sample]
    unlabelled: list[Sample]
    validation: list[Sample]
    cameras: tuple[str, ...] = ()


class Trainer:
    """Student, teachers, optimizer and data order of one run; `step()` does one optimizer step.

    checkpoint (what the student starts from), student, teachers, features, names (trainable parameter -> its name), rows,
    gradients, objectives, optimizer, rounding (None without student.quantization); samples, labelled, unlabelled (streams of
    packs), collate; contract (what the student's files promise, but for the digests of its data); caches, parallel, placement,
    device; steps_done.
    """

    def __init__(self, config: RunConfig, samples: TrainingSamples) -> None:
        self.config = config
        self.parallel = join(config.training.device)
        self.device = self.parallel.device
        _check_unit(config, self.parallel.size)
        if config.training.threads:
            torch.set_num_threads(config.training.threads)
        if self.device.type == "cpu":
            return_large_blocks()
        self.samples = samples
        with self.parallel.agreed():
            self._load_models()
        self._place_student()
        self.labelled = PackStream(self.packs_of(samples.labelled), seed=config.seed, stream=0)
        self.unlabelled = PackStream(self.packs_of(samples.unlabelled), seed=config.seed, stream=1)
        wanted = config.training.validate_on == "accuracy"
        count = config.training.validation_samples
        self.accuracy_samples = accuracy_samples(samples.validation, count, config.seed) if wanted else []
        self.steps_done = 0

    def _load_models(self) -> None:
        config = self.config
        dtype = torch.bfloat16 if config.training.precision == "bf16" else torch.float32
        view = config.data.camera_size_px, config.data.tiles
        held = torch.float32 if self.parallel.sharded else dtype  # FSDP2 wants weights of one dtype
        self.checkpoint = Checkpoint.open(config.student.checkpoint).with_grounding(config.data.grounding_tokens)
        loaded = load_student(
            self.checkpoint, config.student, self.device, *view, compute_dtype=dtype, held_dtype=held, seed=config.seed
        )
        self.student, self.collate, self.names = loaded.model, loaded.collate, loaded.names
        self.rounding = loaded.rounding
        positions, known = self.student.config.text_config.max_position_embeddings, self.samples
        self.contract = run_contract(config, self.collate, positions, known.cameras, [*known.labelled, *known.validation])
        self.caches = Caches(config, self.collate, writer=self.parallel.rank)
        towers = Towers(self.collate, self.caches.vision_store, cache_bytes=config.cache.memory_mb << 20)
        self.features = (
            towers.of(self.student, self.device, dtype)
            if loaded.frozen_vision
            else ImageFeatures(self.student, self.collate, self.device, dtype, frozen=False)
        )
        self.teachers = Teachers(config, self.student, towers, self.device, dtype) if config.teachers.paths() else None
        if self.teachers is not None:
            self.caches.attach(self.teachers)
        every = [*self.samples.labelled, *self.samples.unlabelled]
        self.caches.require_space(cache_size(config, self.checkpoint, self.teachers, self.collate, every))
        self.rows = rows_for(config)
        self.objectives = Objectives(config, self.rows, self.student, self.features, self.teachers, dtype)
        self._supervised = Objectives(config, self.rows, self.student, self.features, None, dtype)
        self._reconciler = _reconciler(config, self.rows)

    def _place_student(self) -> None:
        """Shard the student where that is wanted, then make what holds a part for each parameter."""
        self.parallel.same_start(list(self.names))
        self.placement = place(self.student, self.parallel)
        trainable = set(self.names.values())  # sharding made new parameters
        self.names = {parameter: name for name, parameter in self.student.named_parameters() if name in trainable}
        offload, settings = self.config.training.offload_gradients, self.config.optimizer
        self.gradients = GradientRows(list(self.names), len(self.rows.names), offload=offload)
        self.optimizer = adamw(self.names, settings)

    def packs_of(self, samples: Sequence[Sample]) -> list[Pack]:
        """The samples as `training.packing` puts them together."""
        training = self.config.training
        if training.packing == "none":
            return single_packs(samples)
        return frame_packs(
            samples,
            self.collate.num_tokens,
            training.max_pack_tokens,
            self.config.seed,
            by_capability=training.packing == "capability",
        )

    def fill_cache(self) -> None:
        """Ask the teachers about every sample before the first step; without a cache there is nothing to do."""
        if self.teachers is not None and self.teachers.caches:
            packs = self.packs_of([*self.samples.labelled, *self.samples.unlabelled])
            with self.parallel.agreed():
                fill(self.teachers, self.config, self.collate, self.parallel.part_of(packs), self.device, self.caches)
            if self.parallel.size > 1:
                self.caches.refresh()  # what the other processes have written

    def step(self) -> dict[str, Any]:
        """One optimizer step; returns its record for metrics.jsonl. Raises TrainingError on NaN."""
        started_s = time.perf_counter()
        if self.begins_rounding:
            self._begin_rounding()
        packs = self.step_packs()
        samples = [sample for pack in packs for sample in pack]
        losses, tokens, reconciled = self._reconciled_gradients(packs, samples)
        rate = learning_rate(self.config.optimizer, self.steps_done, self.config.training.steps)
        update_norm = self._update(rate)
        self.steps_done += 1
        seconds = time.perf_counter() - started_s
        metrics = reconciled.metrics()
        return {
            "step": self.steps_done,
            "loss": losses,
            **metrics,
            "update_norm": update_norm,
            "learning_rate": rate,
            "samples": len(samples),
            "tokens": tokens,
            "tokens_per_s": tokens / seconds,
            "seconds": seconds,
        }

    @property
    def begins_rounding(self) -> bool:
        """Whether the next step is the first one that computes with rounded weights, after others that did not."""
        settings = self.config.student.quantization
        if self.rounding is None or settings is None or self.rounding.active:
            return False
        return self.steps_done >= self.config.training.steps - settings.last_steps

    def _begin_rounding(self) -> None:
        """Scales are new parameters now: with a step count that others have, Adam's first steps would be three times as long."""
        assert self.rounding is not None
        self.rounding.begin()
        for parameter, name in self.names.items():
            if is_scale(name):
                self.optimizer.state.pop(parameter, None)

    def _rounded_once(self) -> AbstractContextManager[None]:
        """While weights stay as they are."""
        return nullcontext() if self.rounding is None else self.rounding.held()

    def step_packs(self) -> list[Pack]:
        """What the next step learns from."""
        training = self.config.training
        labelled = self.labelled.slice(self.steps_done * training.batch_size, training.batch_size)
        extra = training.unlabelled_batch_size
        return labelled + (self.unlabelled.slice(self.steps_done * extra, extra) if extra else [])

    def _reconciled_gradients(
        self, packs: Sequence[Pack], samples: Sequence[Sample]
    ) -> tuple[dict[str, float], int, ReconcileRecord]:
        """Every parameter's .grad becomes the step's update; returns each term's mean loss, the number of tokens, the record."""
        size = StepSize(self.steps_done, sum(sample.answer is not None for sample in samples), len(samples))
        by_micro_batch = self.config.projection.unit == "micro_batch"
        mixing = sample_mixing(self.config.signals.mixing, samples, self.config.seed, self.steps_done)
        shares = row_shares(self.rows, samples, mixing)
        totals = dict.fromkeys((*self.rows.names, _TOKENS), 0.0)
        records: list[ReconcileRecord] = []
        self.gradients.zero()
        self._suspects: set[str] = set()  # records of micro-batches whose loss is not finite
        together = nullcontext() if self.parallel.sharded else self.parallel.agreed()  # shards communicate in every pass
        with together, self._rounded_once():
            for index, turn in enumerate(self._turns(packs)):
                batch = self.collate(turn.micro_batch).to(self.device)
                losses = self._add_gradients(batch, size, counts=turn.counts)
                for name, loss in losses.items():
                    totals[name] += loss
                totals[_TOKENS] += batch.num_tokens * turn.counts
                if by_micro_batch:
                    records.append(self._reconcile(losses, shares, index))
        totals = dict(zip(totals, self.parallel.sums(list(totals.values())), strict=True))
        tokens = int(totals.pop(_TOKENS))
        self.gradients.all_reduce()
        means = {name: total / shares[name] for name, total in totals.items() if shares[name] > 0}
        if not by_micro_batch:
            records.append(self._reconcile(totals, shares, None))
        self.placement.release()
        self.gradients.write_update()
        return means, tokens, merge_records(records)

    def _turns(self, packs: Sequence[Pack]) -> list[Turn[list[Pack]]]:
        """This process's micro-batches of a step, small enough that every process has one."""
        size = min(self.config.training.micro_batch_size, math.ceil(len(packs) / self.parallel.size))
        return self.parallel.turns(micro_batches(packs, size, self.num_tokens), self._cost, self._reached)

    def _cost(self, micro_batch: Sequence[Pack]) -> int:
        return sum(self.num_tokens(pack) for pack in micro_batch)

    def _reached(self, micro_batch: Sequence[Pack]) -> Hashable:
        """The rows that a micro-batch fills, which say what weights its backward passes reach."""
        samples = [sample for pack in micro_batch for sample in pack]
        mixing = sample_mixing(self.config.signals.mixing, samples, self.config.seed, self.steps_done)
        return tuple(name for name, share in row_shares(self.rows, samples, mixing).items() if share > 0)

    def _add_gradients(self, batch: Batch, size: StepSize, *, counts: bool) -> dict[str, float]:
        """Add a micro-batch's gradients to the rows; returns its part of each row's loss."""
        found: dict[str, float] = {}
        seed_dropout(self.config, self.steps_done, batch.samples)
        with self._losses(self.objectives, batch, size) as losses:
            for row, loss in sorted(losses.items()):
                part = loss if counts else loss * 0.0
                found[self.rows.names[row]] = float(part.detach())
                if not math.isfinite(found[self.rows.names[row]]):
                    self._suspects.update(sample.source for sample in batch.samples)
                if self.device.type == "cpu":
                    return_freed_memory()  # a backward pass begins where memory is fullest: a tenth less, no slower (measured)
                self.gradients.add(row, part * self.placement.loss_scale, retain_graph=row != max(losses))
        return found

    @contextmanager
    def _losses(self, objectives: Objectives, batch: Batch, size: StepSize) -> Iterator[dict[int, Tensor]]:
        with ExitStack() as stack:
            yield self.placement.forward(lambda: stack.enter_context(objectives.losses(batch, size)))

    def _reconcile(self, losses: Mapping[str, float], shares: Mapping[str, float], micro_batch: int | None) -> ReconcileRecord:
        """The rows become a part of the update. losses: sums over the projected unit, by row."""
        for name, loss in losses.items():
            self._check_finite(f"the loss term {name!r}", loss)
        means = {name: loss / shares[name] for name, loss in losses.items() if shares[name] > 0}
        coefficients, record = self._reconciler(self.gradients.gram(), means, step=self.steps_done, micro_batch=micro_batch)
        self.gradients.accumulate(coefficients)
        return record

    def num_tokens(self, pack: Pack) -> int:
        """Roughly, to sort and deal out by: the prefix counts once a question."""
        return sum(sum(self.collate.num_tokens(sample)) for sample in pack)

    def _check_finite(self, what: str, value: float) -> None:
        if not math.isfinite(value):
            raise TrainingError(
                f"step {self.steps_done + 1}: {what} is {value}; training stopped before the update. "
                f"{_named(self._suspects)}Lower optimizer.learning_rate, or look at the last records of metrics.jsonl"
            )

    def _update(self, rate: float) -> float:
        clip_norm = self.config.optimizer.clip_norm or math.inf
        grad_norm = whole_number(nn.utils.clip_grad_norm_(list(self.names), clip_norm))
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        return grad_norm

    @torch.no_grad()
    def validate(self) -> float | None:
        """CE over the validation samples (mean over samples); None without any."""
        samples = self.samples.validation
        if not samples:
            return None
        self.student.eval()
        total = 0.0
        chunks = micro_batches(self.packs_of(samples), self.config.training.micro_batch_size, self.num_tokens)
        with nullcontext() if self.parallel.sharded else self.parallel.agreed(), self._rounded_once():
            for turn in self.parallel.turns(chunks, self._cost, lambda _: None):
                with self._losses(self._supervised, self.collate(turn.micro_batch).to(self.device), StepSize(0, 1, 1)) as losses:
                    total += sum(float(loss) for loss in losses.values()) * turn.counts
        self.placement.release()
        self.student.train()
        return self.parallel.sums([total])[0] / len(samples)

    @torch.no_grad()
    def validation_accuracy(self) -> float | None:
        """Mean score of the validation questions, 0 to 1; None with validate_on: loss. All processes call it."""
        if self.config.training.validate_on != "accuracy":
            return None
        asked = self.accuracy_samples
        shared = self.parallel.part_of(asked) if len(asked) >= self.parallel.size else asked
        share = len(shared) / len(asked) if shared is not asked else 1.0
        self.student.eval()
        dtype = torch.bfloat16 if self.config.training.precision == "bf16" else torch.float32
        with nullcontext() if self.parallel.sharded else self.parallel.agreed(), self._rounded_once():
            found = self.placement.forward(
                lambda: summed_scores(self.student, self.collate.processor, self.contract, shared, dtype)
            )
        self.placement.release()
        self.student.train()
        total, weight = self.parallel.sums([found, share])
        return total / (weight * len(asked))

    def saved_student(self, inputs: Mapping[str, str] | None = None) -> SavedStudent:
        """What the student's files are made from. All processes call it; the main one has the tensors.

        inputs: digests of what the run learns from, by key.
        """
        weights = {name: parameter.detach() for parameter, name in self.names.items()}
        trained = gathered(weights, keep=self.parallel.is_main)
        scales, forms = dict[str, Tensor](), dict[str, WeightForm]()
        if self.rounding is not None:
            scales, forms = self.rounding.scales(trained, self.names, self.device), self.rounding.forms
        traces = self._traces if self.parallel.is_main else traces_of([])  # pictures are read for them: once
        promises = with_data(self.contract, inputs or {}), traces
        return SavedStudent(self.student, trained, self.checkpoint, self.config.student, *promises, scales, forms)

    @cached_property
    def _traces(self) -> Traces:
        return training_traces([*self.samples.labelled, *self.samples.unlabelled])

    def save(self, checkpoints: Path, inputs: Mapping[str, str], validations: Validations) -> None:
        """Write checkpoints/step-N, then make durable what was cached. All processes call it; raises when the disk is full."""
        student = self.saved_student(inputs)
        moments = gathered(optimizer_tensors(self.optimizer, self.names), keep=self.parallel.is_main)
        state = TrainingState(
            step=self.steps_done,
            threads=torch.get_num_threads(),
            torch=torch.__version__,
            weighting=self._reconciler.state_dict(),
            inputs=dict(inputs),
            validations=validations,
            files={},
        )
        with self.parallel.agreed():
            if self.parallel.is_main:
                write_checkpoint(checkpoints / f"step-{self.steps_done}", student, moments, state)
            self.caches.flush()
        if self.parallel.size > 1:
            self.caches.refresh()  # what the other processes have written since

    def resume(self, checkpoints: Path) -> TrainingState:
        """Continue from the newest complete checkpoint. Raises CheckpointError when there is none."""
        directory, state = newest_checkpoint(checkpoints)
        restore_weights(directory, self.config.student, self.names)
        restore_optimizer(directory, self.optimizer, self.names)
        self._reconciler.load_state_dict(state.weighting)
        self.steps_done = state.step
        if self.rounding is not None and self.config.student.quantization is not None:
            first = self.config.training.steps - self.config.student.quantization.last_steps
            self.rounding.active = self.rounding.active or self.steps_done > first
        if (state.threads, state.torch) != (torch.get_num_threads(), torch.__version__):
            logger.warning(
                "%s ran on %d CPU threads with torch %s, this run uses %d with torch %s: the result will not be equal bit for "
                "bit; set training.threads=%d and install that torch",
                *(directory, state.threads, state.torch, torch.get_num_threads(), torch.__version__, state.threads),
            )
        return state


def _reconciler(config: RunConfig, rows: Rows) -> Reconciler:
    settings, signals = config.projection, config.signals
    weights = {CE: signals.ce_weight} | {name: getattr(signals, name).weight for name in rows.followers}
    dynamic = DynamicSettings(**signals.dynamic.model_dump())
    return Reconciler(
        rows.names,
        dict[str, int](rows.anchors.items()),
        dict[str, int](rows.followers.items()),
        weighting_for(signals.weighting, weights, dynamic),
        ReconcileSettings(settings.method, settings.unit, settings.anchor, settings.anchor_multiplicity, tuple(settings.stages)),
        seed=config.seed,
    )


def _named(sources: Collection[str], most: int = 8) -> str:
    """A sentence; empty where another process has them."""
    more = f" and {len(sources) - most} more" if len(sources) > most else ""
    return f"It came up in a micro-batch with {', '.join(sorted(sources)[:most])}{more}. " if sources else ""


def _check_unit(config: RunConfig, num_processes: int) -> None:
    if config.projection.unit == "micro_batch" and num_processes > 1:
        raise ConfigError(
            f'projection.unit = "micro_batch" projects one micro-batch after the other, as the released code did in one process; '
            f'here are {num_processes} processes. Use projection.unit = "step", whose update is the same for any number of them'
        )
