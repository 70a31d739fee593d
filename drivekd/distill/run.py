"""A training run from configuration to `final/`: files, progress, checkpoints, clean stops."""

from __future__ import annotations

import resource
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from drivekd.config import RunConfig, dump_config, load_config
from drivekd.data.readers import check_images, read_samples
from drivekd.data.sample import Capability, Sample
from drivekd.distill.checkpoint import remove_old_checkpoints, write_model
from drivekd.distill.trainer import Trainer, TrainingSamples
from drivekd.errors import ConfigError, DataError, DrivekdError, TrainingError
from drivekd.log import MetricsFile, ProgressLine, logger
from drivekd.run_directory import refuse_non_empty, versions, whole_directory, write_json_atomic, write_text_atomic

CADENCE_KEYS = {"checkpoint_every_steps", "keep_checkpoints", "validate_every_steps", "threads", "device"}


@dataclass(frozen=True)
class TrainingSummary:
    """What a finished run reports. validation_loss: CE, None without a validation file."""

    final: Path
    steps: int
    loss: dict[str, float]
    validation_loss: float | None


def train(config: RunConfig, out: Path, *, resume: bool = False) -> TrainingSummary:
    """Run or continue a training run in `out`. Raises UsageError, DataError, CheckpointError, TrainingError."""
    if resume:
        _check_same_run(config, out)
    else:
        refuse_non_empty(out, "give a new --out, or --resume to continue the run there")
    samples = read_training_samples(config)
    trainer = Trainer(config, samples)
    out.mkdir(parents=True, exist_ok=True)
    if resume:
        trainer.resume(out / "checkpoints")
    write_text_atomic(out / "config.yaml", dump_config(config))
    write_json_atomic(out / "versions.json", versions())
    try:
        return _run(trainer, out)
    except DrivekdError:
        if trainer.steps_done == 0:  # nothing to resume: leave no run directory that only stands in the way
            shutil.rmtree(out)
        raise


def dry_run(config: RunConfig) -> list[tuple[str, str]]:
    """Check data and models, do one real optimizer step in memory, and say what the run would cost; writes nothing."""
    samples = read_training_samples(config)
    trainer = Trainer(config, samples)
    trainer.step()
    record = trainer.step()
    trainable = sum(p.numel() for p in trainer.student.parameters() if p.requires_grad)
    return [
        ("labelled samples", f"{len(samples.labelled):,}"),
        ("unlabelled samples", f"{len(samples.unlabelled):,}"),
        ("trainable parameters", f"{trainable:,} of {sum(p.numel() for p in trainer.student.parameters()):,}"),
        ("tokens a step", f"{record['tokens']:,}"),
        ("seconds a step", f"{record['seconds']:.3f} on {trainer.device}"),
        ("whole run", f"{record['seconds'] * config.training.steps / 60:.1f} minutes for {config.training.steps:,} steps"),
        ("peak memory", f"{_peak_memory_mb():,.0f} MB of this host's RAM"),
    ]


def read_training_samples(config: RunConfig) -> TrainingSamples:
    """Read every data file of a configuration. Raises DataError naming file and record."""
    root = config.data.image_root
    wanted = set(config.data.capabilities)

    def read(key: str, paths: list[Path], kept: set[Capability], *, unlabelled: bool = False) -> list[Sample]:
        found = [sample for path in paths for sample in read_samples(path, image_root=root, unlabelled=unlabelled)]
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
    return TrainingSamples(
        labelled=read("data.train", config.data.train, wanted),
        unlabelled=[replace(sample, answer=None) for sample in unlabelled],  # an answer here must not be learnt from
        validation=read("data.validation", [config.data.validation] if config.data.validation else [], wanted),
    )


def _check_same_run(config: RunConfig, out: Path) -> None:
    """Resuming with other settings would be another run under the old one's name."""
    recorded = out / "config.yaml"
    if not recorded.is_file():
        raise ConfigError(f"--resume: {recorded} does not exist; {out} holds no run to continue")
    before, now = (value.model_dump(mode="json") for value in (load_config(recorded), config))
    for tree in (before, now):
        tree["training"] = {key: value for key, value in tree["training"].items() if key not in CADENCE_KEYS}
    different = [
        f"{section}.{key}" if isinstance(now[section], dict) else section
        for section in now
        for key in (now[section] if isinstance(now[section], dict) else [section])
        if before[section] != now[section]
        and (not isinstance(now[section], dict) or before[section].get(key) != now[section][key])
    ]
    if different:
        raise ConfigError(f"--resume: {recorded} was started with another {', '.join(different)}; start a new run for that")


def _run(trainer: Trainer, out: Path) -> TrainingSummary:
    settings = trainer.config.training
    metrics = MetricsFile(out / "metrics.jsonl", keep_until_step=trainer.steps_done)
    board = SummaryWriter(str(out / "tensorboard"), purge_step=trainer.steps_done + 1)
    progress = ProgressLine()
    record: dict[str, Any] = {"loss": {}}
    try:
        with _stop_requested() as stop:
            while trainer.steps_done < settings.steps:
                record = trainer.step()
                if settings.validate_every_steps and trainer.steps_done % settings.validate_every_steps == 0:
                    record["validation_loss"] = trainer.validate()
                metrics.write(record)
                _write_board(board, record)
                progress.show(_line(record, settings.steps), final=trainer.steps_done == settings.steps)
                stopping = bool(stop)  # asked once: a signal after the save must not claim that this step is saved
                if trainer.steps_done % settings.checkpoint_every_steps == 0 or stopping:
                    trainer.save(out / "checkpoints")
                    remove_old_checkpoints(out / "checkpoints", settings.keep_checkpoints)
                if stopping:
                    raise TrainingError(
                        f"stopped by {stop[0]} after step {trainer.steps_done} of {settings.steps}; "
                        f"everything is saved, continue with --resume --out {out}"
                    )
    finally:
        metrics.close()
        board.close()
        progress.close()
    validation_loss = trainer.validate()
    with whole_directory(out / "final") as final:
        write_model(final, trainer.student, trainer.config.student.checkpoint, trainer.config.prompts)
        write_text_atomic(final / "config.yaml", dump_config(trainer.config))
    return TrainingSummary(out / "final", trainer.steps_done, record["loss"], validation_loss)


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


def _line(record: dict[str, Any], steps: int) -> str:
    losses = "  ".join(f"{name} {value:.3g}" for name, value in record["loss"].items())
    left_s = (steps - record["step"]) * record["seconds"]
    return (
        f"step {record['step']}/{steps}  {losses}  lr {record['learning_rate']:.1e}  "
        f"{record['tokens_per_s']:,.0f} tokens/s  {_peak_memory_mb():,.0f} MB  {left_s / 60:.1f} min left"
    )


def _write_board(board: SummaryWriter, record: dict[str, Any]) -> None:
    for key, value in record.items():
        entries = {f"{key}/{name}": number for name, number in value.items()} if isinstance(value, dict) else {key: value}
        for name, number in entries.items():
            if number is not None and name != "step":
                board.add_scalar(name, number, record["step"])


def _peak_memory_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
