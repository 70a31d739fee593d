"""Real steps of a run, measured on its own trainer: seconds, bytes of memory, bytes of files. Nothing that it writes stays.

The measured steps are the run's own, with its models, data and settings; only the learning rate is so small that no weight moves.
A step is measured in its steady state, features of its pictures in memory; where a disk cache is wanted, once with the teachers
asked (and their answers stored in a temporary directory) and once with the answers read back. Reading and encoding a picture is
measured by itself, since a run does it for a new picture alone.
"""

from __future__ import annotations

import hashlib
import math
import os
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from drivekd.config import RunConfig
from drivekd.data.batch import Batch, Collator
from drivekd.data.packs import Pack
from drivekd.distill.teachers.caches import Caches, can_be_cached
from drivekd.distill.teachers.features import ImageFeatures
from drivekd.distill.training.checkpoint import Validations, write_student
from drivekd.distill.training.gradients import GradientRows
from drivekd.distill.training.optimizer import is_scale
from drivekd.distill.training.resume import input_files
from drivekd.distill.training.trainer import Trainer
from drivekd.files import file_digest
from drivekd.log import ProgressLine

BUDGET_S = 60.0  # for measuring steps; at least FEWEST are measured, whatever they take
FEWEST, MOST = 2, 24
IMAGES_AT_ONCE = 8
SAMPLE_BYTES = 256 << 20  # of a file whose writing is timed, where a whole checkpoint would be larger than SAVE_AT_MOST
SAVE_AT_MOST = 1 << 30
HASHED_BYTES = 16 << 20


@dataclass(frozen=True)
class StepTimes:
    """Seconds of the measured steps, one number each: again = nothing is new; asking = as much more with the teachers asked (0
    without a cache), for `questions` new (sample, teacher) questions. read_s, encode_s: a picture."""

    again: Sequence[float]
    asking: Sequence[float]
    questions: Sequence[int]
    read_s: float
    encode_s: float


@dataclass(frozen=True)
class FileCosts:
    """Bytes and seconds of one checkpoint and of final/."""

    checkpoint_bytes: int
    checkpoint_s: float
    final_bytes: int
    final_s: float


class WatchedRows(GradientRows):
    """Gradient rows that remember the most they held: when their Gram matrix is asked for, all are full."""

    most_bytes = 0

    def gram(self) -> Tensor:
        self.most_bytes = max(self.most_bytes, self.num_bytes)
        return super().gram()


class Measurement:
    """Drives a trainer through chosen steps."""

    def __init__(self, trainer: Trainer) -> None:
        self._trainer = trainer
        self._images: set[Path] = set()
        config = trainer.config
        names, offload = list(trainer.names), config.training.offload_gradients
        trainer.gradients = self.rows = WatchedRows(names, len(trainer.rows.names), offload=offload)
        signals = trainer.teachers.signals if trainer.teachers is not None else {}
        self.cached = [name for name, signal in signals.items() if can_be_cached(signal)]

    @property
    def num_images(self) -> int:
        """Distinct pictures that were encoded, and are in memory now."""
        return len(self._images)

    def packs(self, step: int) -> list[Pack]:
        """What the run trains on in a step, 0-based."""
        self._trainer.steps_done = step
        return self._trainer.step_packs()

    def seconds(self, step: int) -> float:
        """Do one step, and wait until the device has done it."""
        self._trainer.steps_done = step
        return self._timed(self._trainer.step)

    def warm_up(self, step: int) -> float:
        """A first step: kernels are chosen, the optimizer's state is made. Returns what one then takes."""
        self._encode(self.packs(step))
        first_s = self.seconds(step)
        return first_s if first_s > BUDGET_S / 4 else self.seconds(step)

    def num_steps(self, warm_s: float, *, caching: bool) -> int:
        """How many steps the budget allows; the same in all processes."""
        parallel = self._trainer.parallel
        slowest = parallel.sums([warm_s])[0] / parallel.size * (2 if caching else 1)
        return max(FEWEST, min(MOST, int(BUDGET_S / slowest)))

    def steps(self, steps: Sequence[int], questions: Callable[[int], int], *, caching: bool) -> StepTimes:
        """Measure chosen steps. questions: how many (sample, teacher) questions of a step a cache keeps the answers to."""
        again, asking = list[float](), list[float]()
        progress = ProgressLine()
        for number, step in enumerate(steps, 1):
            if self._trainer.parallel.is_main:
                progress.show(f"dry run: measuring step {number} of {len(steps)}")
            self._encode(self.packs(step))
            with self._signal_cache(caching):
                first = self.seconds(step) if caching else math.nan
                again.append(self.seconds(step))
            asking.append(max(0.0, first - again[-1]) if caching else 0.0)
        progress.close()
        return StepTimes(again, asking, [questions(step) for step in steps], *self._image_seconds(self.packs(steps[0])))

    def validation(self, packs: Sequence[Pack]) -> float:
        """Seconds to validate the trainer's validation samples, these packs, with their pictures read and encoded already."""
        self._encode(packs)
        return self._timed(self._trainer.validate)

    def files(self, out: Path, expected: FileCosts) -> FileCosts:
        """Write a checkpoint and a final student beside `out` and remove them; where that is gigabytes, time a part of it.

        expected: the bytes, computed; seconds are not used. Raises OSError where nothing can be written.
        """
        with TemporaryDirectory(prefix=".drivekd-dry-run-", dir=existing_parent(out)) as name:
            place = Path(name)
            if expected.checkpoint_bytes + expected.final_bytes > SAVE_AT_MOST:
                rate_s = self._write_rate(place)
                final_s = expected.final_bytes * rate_s
                return FileCosts(expected.checkpoint_bytes, expected.checkpoint_bytes * rate_s, expected.final_bytes, final_s)
            checkpoint_s = self._timed(lambda: self._trainer.save(place, self._inputs(), Validations()))
            final_s = self._timed(lambda: self._write_final(place / "final"))
            checkpoint = place / f"step-{self._trainer.steps_done}"
            sizes = (_bytes_in(checkpoint), _bytes_in(place / "final")) if self._trainer.parallel.is_main else (0, 0)
            return FileCosts(sizes[0], checkpoint_s, sizes[1], final_s)

    def _write_final(self, directory: Path) -> None:
        student = self._trainer.saved_student(self._inputs())
        if self._trainer.parallel.is_main:
            directory.mkdir()
            write_student(directory, student)

    def _inputs(self) -> dict[str, str]:
        """As long as the run's own digests, and none."""
        return dict.fromkeys(input_files(self._trainer.config), "0" * 64)

    def _write_rate(self, place: Path) -> float:
        """Seconds a byte, its digest included."""
        data = torch.ones(SAMPLE_BYTES // 4)

        def write() -> None:
            save_file({"ones": data}, place / "sample.safetensors")
            file_digest(place / "sample.safetensors")

        return self._timed(write) / SAMPLE_BYTES

    def _encode(self, packs: Sequence[Pack]) -> None:
        """Bring the pictures of packs into memory, and what frozen towers make of them."""
        trainer = self._trainer
        for pack in packs:
            fresh = [path for path in pack[0].images if path not in self._images]
            self._images.update(fresh)
            if fresh:
                batch = trainer.collate([pack]).to(trainer.device)
                trainer.collate.pixel_values(fresh, pack[0].source)
                for tower in frozen_towers(trainer):
                    tower(batch)

    @contextmanager
    def _signal_cache(self, caching: bool) -> Iterator[None]:
        """An empty disk cache, for one step."""
        teachers = self._trainer.teachers
        if not caching or teachers is None:
            yield
            return
        with TemporaryDirectory(prefix="drivekd-dry-run-") as name:
            config = with_cache_in(Path(name), self._trainer.config)
            caches = Caches(config, self._trainer.collate)
            caches.attach(teachers)
            try:
                yield
            finally:
                teachers.caches = {}

    def _image_seconds(self, packs: Sequence[Pack]) -> tuple[float, float]:
        """To read and to encode one picture."""
        trainer = self._trainer
        chosen = [pack for pack in packs if pack[0].images][:IMAGES_AT_ONCE]
        paths = list(dict.fromkeys(path for pack in chosen for path in pack[0].images))[:IMAGES_AT_ONCE]
        if not paths:
            return 0.0, 0.0
        collate = Collator(trainer.collate.processor)
        cold, warm = (self._timed(lambda: collate.pixel_values(paths, "")) for _ in range(2))
        batch: Batch = trainer.collate(chosen[:1]).to(trainer.device)
        encode_s = 0.0
        for tower in frozen_towers(trainer):
            device = next(tower.model.parameters()).device
            empty = ImageFeatures(tower.model, collate, device, tower.dtype, frozen=True)
            encode_s += self._timed(lambda empty=empty: empty(batch)) / len(set(batch.images[0]))  # type: ignore[misc]
        return max(0.0, cold - warm) / len(paths), encode_s

    def _timed(self, act: Callable[[], object]) -> float:
        self._wait()
        started_s = time.perf_counter()
        act()
        self._wait()
        return time.perf_counter() - started_s

    def _wait(self) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()


def frozen_towers(trainer: Trainer) -> list[ImageFeatures]:
    """The student's and the teachers', each once."""
    teachers = trainer.teachers.by_capability.values() if trainer.teachers is not None else ()
    towers = dict.fromkeys([trainer.features, *(teacher.features for teacher in teachers)])
    return [tower for tower in towers if tower.frozen]


def with_cache_in(directory: Path | None, config: RunConfig) -> RunConfig:
    """The configuration with its cache elsewhere, or nowhere."""
    return config.model_copy(update={"cache": config.cache.model_copy(update={"directory": directory})})


def expected_files(trainer: Trainer) -> FileCosts:
    """The bytes of a checkpoint and of final/, from the sizes of their tensors; their JSON files are left out, seconds are 0."""
    trained = sum(parameter.numel() for parameter in trainer.names)
    whole = sum(parameter.numel() for name, parameter in trainer.student.named_parameters() if ".lora_" not in name)
    scales = sum(
        parameter.numel() for parameter, name in trainer.names.items() if is_scale(name)
    )  # in a file of their own besides
    saved = whole + scales if trainer.config.student.lora is None else trained
    return FileCosts(4 * (saved + 2 * trained), 0.0, 4 * whole, 0.0)


def digest_seconds(files: Iterable[Path]) -> float:
    """To read the digests of a run's inputs, each once; a part of a file's size is timed, in memory."""
    started_s = time.perf_counter()
    hashlib.sha256(bytes(HASHED_BYTES))
    return (time.perf_counter() - started_s) / HASHED_BYTES * sum(path.stat().st_size for path in set(files))


def existing_parent(path: Path) -> Path:
    """The nearest directory above a path that exists."""
    path = path.absolute()
    while not path.is_dir():
        path = path.parent
    return path


def resident_bytes() -> int:
    """What this process holds in the host's memory now."""
    return int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[1]) * os.sysconf("SC_PAGE_SIZE")


def spread(values: Sequence[float]) -> tuple[float, float, float]:
    """Mean, and about the 95 % interval of it: two standard errors to either side."""
    mean = statistics.fmean(values)
    error = 2 * statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else mean / 2
    return mean, max(0.0, mean - error), mean + error


def weights_bytes(model: nn.Module) -> int:
    """Of a model, each tensor once; of a sharded one, this process's part."""
    tensors = [*model.parameters(), *model.buffers()]
    return sum(getattr(tensor, "to_local", lambda tensor=tensor: tensor)().nbytes for tensor in tensors)


def _bytes_in(directory: Path) -> int:
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())
