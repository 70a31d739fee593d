"""A training run from configuration to `final/`: the loop, validation, and clean stops."""

from __future__ import annotations

import math
import shutil
import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from drivekd.config import RunConfig
from drivekd.data.readers import check_images, read_samples
from drivekd.distill.training.checkpoint import Validations, newest_checkpoint, step_directories
from drivekd.distill.training.memory import advice, is_out_of_memory, smaller_settings
from drivekd.distill.training.parallel import resolve_device
from drivekd.distill.training.resume import check_inputs, input_digests, input_files
from drivekd.distill.training.run_contract import check_same_contract, in_order, settled_cameras
from drivekd.distill.training.run_files import RunFiles
from drivekd.distill.training.trainer import Trainer, TrainingSamples
from drivekd.errors import ConfigError, DataError, DrivekdError, TrainingError
from drivekd.files import refuse_non_empty
from drivekd.log import logger
from drivekd.sample import Capability, Sample
from drivekd.structured.targets import taught_samples

from .resume import _check_same_run, _free_keys


@dataclass(frozen=True)
class TrainingSummary:
    """What a finished run reports, of final/. validation_loss: CE, None without a validation file. validation_accuracy: None with
    validate_on: loss."""

    final: Path
    steps: int
    loss: dict[str, float]
    validation_loss: float | None
    validation_accuracy: float | None = None


def train(config: RunConfig, out: Path, *, resume: bool = False) -> TrainingSummary:
    """Run or continue a training run in `out`. Raises UsageError, DataError, CheckpointError, TrainingError."""
    if resume:
        _check_same_run(config, out)
    else:
        refuse_non_empty(out, "give a new --out, or --resume to continue the run there")
    _check_cache_is_outside(config, out)
    samples = read_training_samples(config)
    inputs = input_digests(config)
    if resume:
        check_inputs(newest_checkpoint(out / "checkpoints")[1].inputs, inputs, input_files(config))
    with _explained(config, out):
        trainer = Trainer(config, samples)
    if resume:
        check_same_contract(newest_checkpoint(out / "checkpoints")[0], trainer.contract)
    validations = trainer.resume(out / "checkpoints").validations if resume else Validations()
    out.mkdir(parents=True, exist_ok=True)
    try:
        summary = _run(trainer, out, inputs, validations)
    except (DrivekdError, KeyboardInterrupt):
        if trainer.steps_done == 0 and trainer.parallel.is_main:  # nothing to resume: leave nothing that stands in the way
            shutil.rmtree(out)
        raise
    trainer.parallel.leave()
    return summary


def read_training_samples(config: RunConfig) -> TrainingSamples:
    """Read every data file of a configuration, and put each record's pictures into the run's order of cameras.

    Raises DataError naming file and record, ConfigError where data.cameras or the models want other orders.
    """
    root = config.data.image_root
    wanted = set(config.data.capabilities)

    def read(key: str, paths: list[Path], kept: set[Capability], *, unlabelled: bool = False) -> list[Sample]:
        how: dict[str, Any] = {"capability": config.data.question_type, "skip": config.data.skip_faulty, "unlabelled": unlabelled}
        found = [sample for path in paths for sample in read_samples(path, image_root=root, **how)]
        samples = [sample for sample in found if sample.capability in kept]
        check_images(samples)
        if paths and not samples:
            raise DataError(f"{key}: no record of {sorted(kept)} in {', '.join(map(str, paths))}")
        return samples

    taught = wanted & set(config.teachers.paths()) if config.signals.mixing == "routed" else wanted
    used = config.data.unlabelled if config.training.unlabelled_batch_size else []
    if config.data.unlabelled and not used:
        logger.warning("data.unlabelled is not used: training.unlabelled_batch_size is 0")
    unlabelled = read("data.unlabelled", used, taught, unlabelled=True)
    labelled = read("data.train", config.data.train, wanted)
    validation = read("data.validation", [config.data.validation] if config.data.validation else [], wanted)
    cameras = settled_cameras(config, [*labelled, *unlabelled, *validation])
    return TrainingSamples(
        labelled=_in_both_forms("data.train", in_order(labelled, cameras), config),
        unlabelled=[replace(sample, answer=None) for sample in in_order(unlabelled, cameras)],  # not to be learnt from
        validation=_in_both_forms("data.validation", in_order(validation, cameras), config),
        cameras=cameras,
    )


def _in_both_forms(key: str, samples: list[Sample], config: RunConfig) -> list[Sample]:
    """As data.structured says, with a word on what became of the records. Raises DataError: no record has a structured answer."""
    mode = config.data.structured
    if mode == "none" or not samples:
        return samples
    taught = taught_samples(samples, mode, config.prompts.structured_instruction)
    num_structured = len(taught) - (len(samples) if mode == "also" else 0)
    if not num_structured:
        raise DataError(f"{key}: data.structured is {mode}, but none of {len(samples)} records holds a structured answer")
    logger.info("%s: %d of %d records are learnt as JSON; the others hold nothing for it", key, num_structured, len(samples))
    return taught


def _check_cache_is_outside(config: RunConfig, out: Path) -> None:
    directory = config.cache.directory
    if directory is not None and directory.resolve().is_relative_to(out.resolve()):
        raise ConfigError(f"cache.directory = {directory} lies in --out {out}; other runs use a cache, too: put it beside them")


def _run(trainer: Trainer, out: Path, inputs: Mapping[str, str], validations: Validations) -> TrainingSummary:
    config, settings = trainer.config, trainer.config.training
    record: dict[str, Any] = {"loss": {}}
    with RunFiles(out, trainer, inputs) as files:
        files.restore_best(validations)
        with _explained(config, out):
            if config.cache.fill_first:
                trainer.fill_cache()
        with _stop_requested() as stop:
            while trainer.steps_done < settings.steps and not validations.exhausted(settings.early_stop_patience):
                if trainer.begins_rounding:  # what was validated so far is no student of the kind that is wanted
                    validations = Validations(last=validations.last)
                with _explained(config, out):
                    record = trainer.step()
                    validations = _validated(trainer, validations, record)
                files.record(record)
                stopping = trainer.parallel.any(bool(stop))  # once: a later signal must not claim that this step is saved
                if stopping or _checkpoint_due(trainer, validations):
                    files.checkpoint(validations)
                if stopping:
                    who = stop[0] if stop else "another process"
                    raise TrainingError(
                        f"stopped by {who} after step {trainer.steps_done} of {settings.steps}; "
                        f"everything is saved, continue with --resume --out {out}"
                    )
        with _explained(config, out):
            validated = bool(settings.validate_every_steps)
            loss = validations.last if validated else trainer.validate()
            accuracy = validations.last_accuracy if validated else trainer.validation_accuracy()
        final = files.final(validations)
    if settings.early_stop_patience:
        loss, accuracy = validations.best, validations.best_accuracy
    return TrainingSummary(final, trainer.steps_done, record["loss"], loss, accuracy)


def _validated(trainer: Trainer, before: Validations, record: dict[str, Any]) -> Validations:
    """Validate where it is time, and put what came out into the step's record. The last step is always time."""
    settings, step = trainer.config.training, trainer.steps_done
    every = settings.validate_every_steps
    if not every or (step % every and step < settings.steps):
        return before
    loss = trainer.validate()
    if loss is None:
        return before
    if not math.isfinite(loss):
        raise TrainingError(f"step {step}: the validation loss is {loss}; lower optimizer.learning_rate")
    accuracy = trainer.validation_accuracy()
    after = before.after(step, loss, accuracy)
    record |= {"validation_loss": loss, "best_validation_loss": after.best, "best_validation_step": after.best_step}
    if accuracy is not None:
        record |= {"validation_accuracy": accuracy, "best_validation_accuracy": after.best_accuracy}
    if after.exhausted(settings.early_stop_patience):
        record["stopped_early"] = True
    return after


def _checkpoint_due(trainer: Trainer, validations: Validations) -> bool:
    """By the clock, before best/ is written, and when the run ends here."""
    settings, step = trainer.config.training, trainer.steps_done
    by_clock = step % settings.checkpoint_every_steps == 0
    return by_clock or validations.best_step == step or validations.exhausted(settings.early_stop_patience)


@contextmanager
def _explained(config: RunConfig, out: Path) -> Iterator[None]:
    """Whatever stops training says what is saved; running out of memory, what to lower and how to go on."""
    try:
        yield
    except TrainingError as error:
        raise TrainingError(f"{error}{_saved(out)}") from error
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        device = resolve_device(config.training.device)
        first_line = str(error).partition("\n")[0]
        what_next = f"{_saved(out)}{_resume_smaller(config, device, out)}"
        raise TrainingError(f"{advice(config, device)}{what_next} ({first_line})") from error


def _saved(out: Path) -> str:
    found = step_directories(out / "checkpoints")
    return f". The last checkpoint is {found[-1]}" if found else ""


def _resume_smaller(config: RunConfig, device: torch.device, out: Path) -> str:
    """The command that goes on with the cheapest setting that a resumed run may change; empty where there is none."""
    settings = [f"{key}={value}" for key, value in smaller_settings(config, device) if key in _free_keys(config)]
    if not settings or not step_directories(out / "checkpoints"):
        return ""
    return f"; continue with: drivekd train {out / 'config.yaml'} --out {out} --resume --set {settings[0]}"


@contextmanager
def _stop_requested() -> Iterator[list[str]]:
    """The yielded list gets the signal's name on Ctrl-C or SIGTERM; the step under way is finished. A second one kills."""
    received: list[str] = []

    def note(number: int, frame: FrameType | None) -> None:
        received.append(signal.Signals(number).name)
        signal.signal(number, previous[signal.Signals(number)])

    previous = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
