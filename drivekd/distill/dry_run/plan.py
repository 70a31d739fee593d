"""`drivekd train --dry-run`: what a run will take in time, memory and disk, before it is paid for.

Data and models are read and checked as for the run itself. Time is what a few real steps take (`measurement`), times how often
the run does each thing (`workload`, `run_times`); memory is that of its largest step (`footprint`); a checkpoint and a final/ are
written beside the run directory and removed (`disk_needs`). Under `accelerate launch` all processes measure together: seconds are
of the common step, nothing is scaled. Assumed: the machine is as busy later as now, every validation is the best so far, and the
run does not stop early.
"""

from __future__ import annotations

import math
import time
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from drivekd.config import RunConfig
from drivekd.data.packs import Pack
from drivekd.distill.dry_run.disk_needs import Disk, bytes_there, cheaper_on_disk, disk_needs, first_that_fits, size
from drivekd.distill.dry_run.footprint import Footprint, Shape, cheapest_fit
from drivekd.distill.dry_run.measured_footprint import feature_bytes, footprints, shape_of, smallest_that_runs
from drivekd.distill.dry_run.measured_steps import (
    FileCosts,
    Measurement,
    StepTimes,
    digest_seconds,
    expected_files,
    frozen_towers,
    resident_bytes,
    with_cache_in,
)
from drivekd.distill.dry_run.run_times import (
    RunTimes,
    Validation,
    asking_s,
    duration,
    num_checkpoints,
    num_validations,
    run_times,
    typical,
)
from drivekd.distill.dry_run.workload import Order, Workload, count, representative
from drivekd.distill.rows import sample_mixing
from drivekd.distill.teachers.caches import CacheSize, cache_size, taught_by
from drivekd.distill.training.memory import is_out_of_memory, smaller_settings
from drivekd.distill.training.parallel import resolve_device
from drivekd.distill.training.resume import input_files
from drivekd.distill.training.train import read_training_samples
from drivekd.distill.training.trainer import Trainer, TrainingSamples
from drivekd.errors import TrainingError
from drivekd.sample import CAPABILITIES, Sample

Row = tuple[str, str]

STILL = 1e-12  # a learning rate at which no weight moves: measuring must not train
VALIDATED = 16  # validation samples that are timed, or the frames of so many


@dataclass(frozen=True)
class Plan:
    """rows: for a table. times, disk: None where no step could be measured.

    problems: why the run cannot succeed; empty when it can.
    """

    rows: list[Row]
    times: RunTimes | None
    disk: Disk | None
    problems: list[str]

    def check(self) -> None:
        """Raises TrainingError when the run cannot succeed."""
        if self.problems:
            raise TrainingError(f"this run does not fit. {' '.join(self.problems)}")


def dry_run(config: RunConfig, out: Path = Path("runs")) -> Plan:
    """Check data and models, measure a few steps. out: where the run would be. Nothing that this writes stays.

    Raises DataError, CheckpointError and ConfigError as the run would.
    """
    started_s = time.perf_counter()
    base_bytes = resident_bytes()
    samples = read_training_samples(config)
    few = replace(samples, validation=_some_frames(samples.validation, VALIDATED))
    trial = measured_config(config)
    try:
        trainer = Trainer(trial, few)
        frozen_towers(trainer)  # loads the teachers, as the run's first step does
        setup_s = time.perf_counter() - started_s + digest_seconds(input_files(config).values())
        return _Planner(config, out, samples, few, trainer, base_bytes, setup_s).plan()
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        device = resolve_device(config.training.device)
        problem = f"Memory: out of memory on {device} ({str(error).partition(chr(10))[0]})."
    advice = smallest_that_runs(trial, few)
    return Plan([*sample_rows(samples), ("memory", problem), ("cheapest change", advice)], None, None, [problem, advice])


def measured_config(config: RunConfig) -> RunConfig:
    """The run's settings, with no cache on disk and a learning rate that moves nothing; every step rounds weights if any does."""
    optimizer = config.optimizer.model_copy(update={"learning_rate": STILL})
    student, quantization = config.student, config.student.quantization
    if quantization is not None:
        student = student.model_copy(update={"quantization": quantization.model_copy(update={"last_steps": 0})})
    return with_cache_in(None, config.model_copy(update={"optimizer": optimizer, "student": student}))


def sample_rows(samples: TrainingSamples) -> list[Row]:
    """How many records of each kind."""
    return [
        ("labelled samples", f"{len(samples.labelled):,}"),
        ("unlabelled samples", f"{len(samples.unlabelled):,}"),
        ("validation samples", f"{len(samples.validation):,}"),
    ]


class _Planner:
    """The parts of one plan."""

    def __init__(
        self,
        config: RunConfig,
        out: Path,
        samples: TrainingSamples,
        few: TrainingSamples,
        trainer: Trainer,
        base_bytes: int,
        setup_s: float,
    ) -> None:
        self._config, self._out, self._samples, self._few = config, out, samples, few
        self._trainer, self._base_bytes, self._setup_s = trainer, base_bytes, setup_s
        self._measurement = Measurement(trainer)
        self._lengths: dict[int, int] = {}  # by id of a pack: tokenizing is slow, and so is hashing a pack's words
        cache = config.cache
        self._caching = cache.directory is not None and cache.signals and bool(self._measurement.cached)
        self._images = {path for part in (samples.labelled, samples.unlabelled) for sample in part for path in sample.images}

    def plan(self) -> Plan:
        trainer, measurement = self._trainer, self._measurement
        order = self._order()
        workload = count(order)
        warm_s = measurement.warm_up(workload.longest_step)
        chosen = representative(workload.features, measurement.num_steps(warm_s, caching=self._caching))
        steps = measurement.steps(chosen, self._num_questions, caching=self._caching)
        validation = self._validation(order)
        memory = footprints(trainer, measurement, self._base_bytes, len(self._images))
        files = measurement.files(self._out, expected_files(trainer))
        disk = self._disk(files)
        times = self._times(workload, steps, files, validation, disk)
        problems = self._memory_problems(memory, workload, order) + self._disk_problems(disk, files)
        rows = [
            *sample_rows(self._samples),
            *self._data_rows(workload),
            *self._time_rows(times, steps),
            *_memory_rows(memory),
            *self._disk_rows(disk, files),
            ("verdict", " ".join(problems) or "fits"),
        ]
        return Plan(rows if trainer.parallel.is_main else [], times, disk, problems)

    def _order(self) -> Order:
        trainer, training = self._trainer, self._config.training
        streams = [
            (len(trainer.labelled), training.batch_size),
            (len(trainer.unlabelled), training.unlabelled_batch_size),
        ]
        each = max((feature_bytes(trainer, tower) for tower in frozen_towers(trainer)), default=0)
        return Order(
            steps=training.steps,
            epoch_steps=max(-(-packs // batch) for packs, batch in streams if batch),
            micro_batch_size=training.micro_batch_size,
            packs_of=self._measurement.packs,
            length=self._length,
            asked=self._questions,
            pictures_kept=trainer.collate.pictures_kept,
            features_kept=(self._config.cache.memory_mb << 20) // each if each else len(self._images),
            vision_trains=not trainer.features.frozen,
            vision_on_disk=self._config.cache.directory is not None and self._config.cache.vision,
        )

    def _length(self, pack: Pack) -> int:
        if id(pack) not in self._lengths:
            self._lengths[id(pack)] = self._trainer.num_tokens(pack)
        return self._lengths[id(pack)]

    def _questions(self, step: int, samples: Sequence[Sample]) -> Iterable[Hashable]:
        """The (sample, teacher) pairs of a step whose answers the cache keeps."""
        if not self._caching:
            return []
        mixing = sample_mixing(self._config.signals.mixing, samples, self._config.seed, step).tolist()
        columns = [CAPABILITIES.index(name) for name in self._measurement.cached]
        return [(id(sample), column) for sample, row in zip(samples, mixing, strict=True) for column in columns if row[column]]

    def _num_questions(self, step: int) -> int:
        samples = [sample for pack in self._measurement.packs(step) for sample in pack]
        return len(set(self._questions(step, samples)))

    def _validation(self, order: Order) -> Validation:
        """Scaled by tokens from the frames that are timed to all."""
        if not self._samples.validation:
            return Validation()

        every, few = (self._trainer.packs_of(part.validation) for part in (self._samples, self._few))
        tokens, timed = (sum(map(self._trainer.num_tokens, packs)) for packs in (every, few))
        seconds = self._measurement.validation(few) * tokens / timed
        images = {path for sample in self._samples.validation for path in sample.images}
        kept = len(images | self._images) <= order.features_kept
        return Validation(seconds, (len(images - self._images), 0 if kept else len(images)))

    def _disk(self, files: FileCosts) -> Disk:
        trainer, empty = self._trainer, CacheSize({})
        if self._config.cache.directory is None:
            return disk_needs(self._config, self._out, empty, 0, files)
        every = [*self._samples.labelled, *self._samples.unlabelled]
        complete = cache_size(self._config, trainer.checkpoint, trainer.teachers, trainer.collate, every)
        return disk_needs(self._config, self._out, complete, bytes_there(self._config, trainer), files)

    def _times(self, workload: Workload, steps: StepTimes, files: FileCosts, validation: Validation, disk: Disk) -> RunTimes:
        """What a cache has already is neither asked nor encoded again: the same share of all its blocks."""
        missing = disk.missing / disk.cache.total if disk.cache.total else 1.0
        every = [*self._samples.labelled, *self._samples.unlabelled]
        known = sum(len(taught_by(name, self._config, every)) for name in self._measurement.cached)
        asks = known if self._config.cache.fill_first else min(workload.asks, known)
        encodes = workload.encodes
        if self._config.cache.directory is not None and self._config.cache.vision:
            encodes = missing * min(encodes, len(self._images))
        done = replace(workload, asks=missing * asks, encodes=encodes)
        processes = self._trainer.parallel.size
        training = self._config.training
        return run_times(training, done, steps, files, validation, processes=processes, setup_s=self._setup_s)

    def _memory_problems(self, memory: Sequence[Footprint], workload: Workload, order: Order) -> list[str]:
        shape = shape_of(
            self._trainer, workload.longest_tokens, min(order.micro_batch_size, len(order.packs_of(workload.longest_step)))
        )
        problems = []
        for found in memory:
            if not found.fits:
                problems.append(
                    f"Memory of {found.device}: {size(found.total)} needed, {size(found.available)} available. "
                    f"{_memory_advice(self._config, found, shape)}"
                )
        return problems

    def _disk_problems(self, disk: Disk, files: FileCosts) -> list[str]:
        cheaper = cheaper_on_disk(self._config, disk, files)
        return [
            f"Disk: {what}: {size(need)} needed, {size(free)} free. What would fit: {first_that_fits(cheaper, need - free)}."
            for what, need, free in disk.lacks()
        ]

    def _data_rows(self, workload: Workload) -> list[Row]:
        trainer, training = self._trainer, self._config.training
        labelled, budgets = len(trainer.labelled), trainer.contract.max_new_tokens
        trainable = sum(parameter.numel() for parameter in trainer.names)
        rows = [("packs", f"{labelled:,} labelled, {len(trainer.unlabelled):,} unlabelled")]
        epochs = f"{training.steps * training.batch_size / labelled:,.2f} of the labelled packs"
        if training.unlabelled_batch_size:
            share = training.steps * training.unlabelled_batch_size / len(trainer.unlabelled)
            epochs += f", {share:,.2f} of the unlabelled ones"
        return [
            *rows,
            ("epochs", f"{epochs}, in {training.steps:,} steps"),
            (
                "tokens",
                f"{workload.tokens / training.steps:,.0f} a step, {workload.tokens:,.0f} in all; longest pack of the largest "
                f"micro-batch {workload.longest_tokens:,}",
            ),
            ("trainable parameters", f"{trainable:,} of {sum(p.numel() for p in trainer.student.parameters()):,}"),
            ("cameras", ", ".join(trainer.contract.cameras) or "the records name none: pictures are shown as they come"),
            ("answers", f"{', '.join(f'{name} {most}' for name, most in budgets.items())} tokens at most"),
        ]

    def _time_rows(self, times: RunTimes, steps: StepTimes) -> list[Row]:
        trainer, training = self._trainer, self._config.training
        parts = ", ".join(f"{name} {duration(seconds)}" for name, seconds in times.by_part.items() if seconds > 0)
        rows = [("seconds a step", f"{typical(steps.again)} on {trainer.parallel.size} x {trainer.device.type}")]
        if self._caching:
            rows.append(("a question to a teacher, once", f"{duration(asking_s(steps))}; afterwards it is read from the cache"))
        rows.append(("a picture, once", f"{duration(steps.read_s)} to read, {duration(steps.encode_s)} in frozen towers"))
        whole = f"{duration(times.total)} ({duration(times.low)} to {duration(times.high)})"
        counts = f"validations: {num_validations(training)}, checkpoints: {num_checkpoints(training)}"
        return [*rows, ("whole run", f"{whole}, if the machine stays as it is: {parts} ({counts})")]

    def _disk_rows(self, disk: Disk, files: FileCosts) -> list[Row]:
        rows = [
            ("checkpoint, final", f"{size(files.checkpoint_bytes)} in {duration(files.checkpoint_s)}, {size(files.final_bytes)}"),
            ("run directory", f"{size(disk.run)} at its fullest, {size(disk.run_free)} free"),
        ]
        if disk.cache.by_store:
            stores = ", ".join(f"{name} {size(num)}" for name, num in disk.cache.by_store.items())
            complete = f"{size(disk.cache.total)} complete ({stores}), {size(disk.there)} there already"
            rows.append(("cache", f"{complete}, {size(disk.cache_free)} free"))
        return rows


def _memory_advice(config: RunConfig, found: Footprint, shape: Shape) -> str:
    ladder = smaller_settings(config, torch.device(found.device))
    fit = cheapest_fit(found, shape, ladder)
    if fit is None:
        return "No setting makes it fit; take a smaller model, a larger device or more devices with FSDP2."
    settings, smaller = fit
    return (
        f"Cheapest change that fits: {' '.join(f'--set {key}={value}' for key, value in settings)}, about {size(smaller.total)}."
    )


def _memory_rows(memory: Sequence[Footprint]) -> list[Row]:
    rows = []
    for found in memory:
        parts = ", ".join(f"{name} {size(num)}" for name, num in found.parts.items() if num)
        left = found.available - found.total
        verdict = f"{size(left)} left" if left >= 0 else f"{size(-left)} too much"
        rows.append(
            (
                f"memory of {found.device}",
                f"{size(found.total)} at the peak, {size(found.available)} available, {verdict}: {parts}",
            )
        )
    return rows


def _some_frames(samples: Sequence[Sample], most: int) -> list[Sample]:
    """Whole frames, evenly spread, of about `most` samples."""
    frames: dict[tuple[Path, ...], list[Sample]] = {}
    for sample in samples:
        frames.setdefault(sample.images, []).append(sample)
    every = max(1, math.ceil(len(samples) / most))
    return [sample for frame in list(frames.values())[::every] for sample in frame]
