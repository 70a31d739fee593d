"""Everything that a run writes, in one place: metrics, TensorBoard, progress, checkpoints, best/ and final/.

Only the main process of a run writes; the others take part in gathering weights and do the rest for nothing.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from drivekd.config import dump_config
from drivekd.distill.training.checkpoint import SavedStudent, Validations, remove_old_checkpoints, write_student
from drivekd.distill.training.memory import peak_bytes
from drivekd.distill.training.trainer import Trainer
from drivekd.errors import CheckpointError, TrainingError
from drivekd.files import disk_is_full, versions, whole_directory, write_whole, write_whole_json
from drivekd.log import MetricsFile, ProgressLine, logger

BEST_FILE = "validation.json"


class RunFiles:
    """The files of one run directory; a context manager: leaving it closes them, and the caches."""

    def __init__(self, out: Path, trainer: Trainer, inputs: Mapping[str, str]) -> None:
        """Cut the metrics of an earlier part of the run at the trainer's step. inputs: digests of what the run learns from."""
        self.out = out
        self._trainer, self._inputs, self._writes = trainer, inputs, trainer.parallel.is_main
        self._settings = trainer.config.training
        if not self._writes:
            return
        with self._room():
            write_whole(out / "config.yaml", dump_config(trainer.config))
            write_whole_json(out / "versions.json", versions())
            self._metrics = MetricsFile(out / "metrics.jsonl", keep_until_step=trainer.steps_done)
            self._board = SummaryWriter(str(out / "tensorboard"), purge_step=trainer.steps_done + 1)
        self._progress = ProgressLine()

    def __enter__(self) -> RunFiles:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """What ended the run is the error to show, not what it did to the files that are closed now."""
        try:
            self._close()
        except TrainingError as lost:
            if error is None:
                raise
            logger.warning("%s", lost)

    def _close(self) -> None:
        try:
            self._trainer.caches.close()
        finally:
            if self._writes:
                self._progress.close()
                with self._room():
                    self._metrics.close()
                    self._board.close()

    @property
    def checkpoints(self) -> Path:
        """The folder of step directories, which may not be there yet."""
        return self.out / "checkpoints"

    def record(self, record: dict[str, Any]) -> None:
        """Write a step's record. Raises TrainingError when the disk is full."""
        if self._writes:
            with self._room():
                self._metrics.write(record)
                _write_board(self._board, record)
            self._progress.show(self._line(record), final=record["step"] == self._settings.steps)

    def checkpoint(self, validations: Validations) -> None:
        """Write checkpoints/step-N; then best/, where this step is the best one. In this order: see `restore_best`."""
        self._trainer.save(self.checkpoints, self._inputs, validations)
        if self._writes:
            remove_old_checkpoints(self.checkpoints, self._settings.keep_checkpoints)
        if validations.best_step == self._trainer.steps_done:
            self._write_best(validations)

    def restore_best(self, validations: Validations) -> None:
        """After resuming: a kill between a checkpoint and its best/ left the older one, whose place the weights take now."""
        missing = self._writes and _best_step(self.out / "best") != validations.best_step == self._trainer.steps_done
        if self._trainer.parallel.any(missing):
            self._write_best(validations)

    def final(self, validations: Validations) -> Path:
        """Write final/: the last weights, or with early_stop_patience those of the best validation."""
        final = self.out / "final"
        if not self._settings.early_stop_patience:
            self._write_student(final, {})
            return final
        with self._trainer.parallel.agreed():
            if self._writes:
                _copy_best(self.out / "best", final, validations)
        return final

    def _write_best(self, validations: Validations) -> None:
        found: dict[str, Any] = {"step": validations.best_step, "validation_loss": validations.best}
        if validations.best_accuracy is not None:
            found["validation_accuracy"] = validations.best_accuracy
        self._write_student(self.out / "best", found)

    def _write_student(self, path: Path, validation: Mapping[str, Any]) -> None:
        student: SavedStudent = self._trainer.saved_student(self._inputs)
        with self._trainer.parallel.agreed():
            if self._writes:
                with whole_directory(path) as directory:
                    write_student(directory, student)
                    write_whole(directory / "config.yaml", dump_config(self._trainer.config))
                    if validation:
                        write_whole_json(directory / BEST_FILE, validation)

    @contextmanager
    def _room(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if not disk_is_full(error):
                raise
            raise TrainingError(f"{self.out}: no space left on the disk for metrics and logs; free space and --resume") from error

    def _line(self, record: dict[str, Any]) -> str:
        losses = "  ".join(f"{name} {value:.3g}" for name, value in record["loss"].items())
        left_s = (self._settings.steps - record["step"]) * record["seconds"]
        return (
            f"step {record['step']}/{self._settings.steps}  {losses}  lr {record['learning_rate']:.1e}  "
            f"{record['tokens_per_s']:,.0f} tokens/s  {peak_bytes(self._trainer.device) / 1e6:,.0f} MB  "
            f"{left_s / 60:.1f} min left"
        )


def _best_step(best: Path) -> int | None:
    """The step that best/ is of; it arrived whole, or is not there."""
    path = best / BEST_FILE
    return int(json.loads(path.read_text(encoding="utf-8"))["step"]) if path.is_file() else None


def _copy_best(best: Path, final: Path, validations: Validations) -> None:
    if _best_step(best) != validations.best_step:
        raise CheckpointError(f"{best}: is of step {_best_step(best)}, but the best step of this run is {validations.best_step}")
    with whole_directory(final) as directory:
        for source in sorted(best.rglob("*")):  # copytree would hide that the disk is full in an error of its own
            target = directory / source.relative_to(best)
            if source.is_dir():
                target.mkdir()
            else:
                shutil.copyfile(source, target)


def _write_board(board: SummaryWriter, record: dict[str, Any]) -> None:
    for key, value in record.items():
        entries = {f"{key}/{name}": number for name, number in value.items()} if isinstance(value, dict) else {key: value}
        for name, number in entries.items():
            if number is not None and name != "step":
                board.add_scalar(name, number, record["step"])
