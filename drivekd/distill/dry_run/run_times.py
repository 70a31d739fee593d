"""How long a run will take: what a few steps took, times how often the run does each thing."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from drivekd.config import TrainingConfig
from drivekd.distill.dry_run.measured_steps import FileCosts, StepTimes, spread
from drivekd.distill.dry_run.workload import Workload


@dataclass(frozen=True)
class Validation:
    """seconds: of one validation over every sample, pictures apart. new_images: how many the first, and a later one encodes."""

    seconds: float = 0.0
    new_images: tuple[int, int] = (0, 0)


@dataclass(frozen=True)
class RunTimes:
    """Seconds of the whole run by what they go to; low, high: between which their sum lies, as far as the steps' spread tells."""

    by_part: dict[str, float]
    low: float
    high: float

    @property
    def total(self) -> float:
        """Seconds of all parts together."""
        return sum(self.by_part.values())


def run_times(
    training: TrainingConfig,
    workload: Workload,
    steps: StepTimes,
    files: FileCosts,
    validation: Validation,
    *,
    processes: int,
    setup_s: float,
) -> RunTimes:
    """Add it all up. Processes share the reading and encoding of pictures; every validation is taken for the best so far."""
    mean, low, high = spread(steps.again)
    image_s = (steps.read_s, steps.encode_s)
    validations, saves = num_validations(training), num_checkpoints(training)
    first, later = validation.new_images
    shown = first + later * (validations - 1) if validation.seconds else 0
    parts = {
        "steps": mean * training.steps,
        "asking teachers once": asking_s(steps) * workload.asks,
        "pictures": (workload.reads * image_s[0] + workload.encodes * image_s[1] + shown * sum(image_s)) / processes,
        "validation": validation.seconds * validations,
        "files": saves * files.checkpoint_s + (1 + num_bests(training)) * files.final_s,
        "start": setup_s,
    }
    total = sum(parts.values())
    return RunTimes(parts, total - (mean - low) * training.steps, total + (high - mean) * training.steps)


def asking_s(steps: StepTimes) -> float:
    """Seconds a question to a teacher, its answer stored."""
    return sum(steps.asking) / max(1, sum(steps.questions))


def num_validations(training: TrainingConfig) -> int:
    """One at the end, or every so many steps and at the end."""
    every = training.validate_every_steps
    return -(-training.steps // every) if every else 1


def num_bests(training: TrainingConfig) -> int:
    """How often best/ is written: at most at every validation, and never without."""
    return num_validations(training) if training.validate_every_steps else 0


def num_checkpoints(training: TrainingConfig) -> int:
    """By the clock, and before best/ is written."""
    every, validated = training.checkpoint_every_steps, training.validate_every_steps
    saved = set(range(every, training.steps + 1, every))
    if validated:
        saved |= {*range(validated, training.steps + 1, validated), training.steps}
    return len(saved)


def duration(seconds: float) -> str:
    """In the largest unit of which there are two."""
    for unit, size in (("days", 86400.0), ("h", 3600.0), ("min", 60.0)):
        if seconds >= 2 * size:
            return f"{seconds / size:,.1f} {unit}"
    return f"{seconds:.1f} s" if seconds >= 1 else f"{seconds:.3f} s"


def typical(values: Sequence[float]) -> str:
    """Median, smallest and largest."""
    return f"{duration(statistics.median(values))} ({duration(min(values))} to {duration(max(values))}, {len(values)} measured)"
