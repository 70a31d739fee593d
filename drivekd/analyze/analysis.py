"""Student and teachers measured on each capability's samples, layers picked, and everything written.

OUT/analysis.json
    pair          {student: {checkpoint, depth}, teacher: {capability: {checkpoint, depth}}}
    capabilities  {name: {student_layers, teacher_layers, signal, reason}}      `signals.layers` of a run's YAML reads these
    curves        {student | teacher: {capability: {name: one value a layer, or a tenth of the answer}}}
    samples       {name: {analysed, available}}
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from drivekd.config import RunConfig
from drivekd.distill.teachers.teachers import DTYPES, open_teachers
from drivekd.distill.training.parallel import resolve_device
from drivekd.distill.training.train import read_training_samples
from drivekd.files import refuse_non_empty, whole_directory, write_whole_json
from drivekd.hf_checkpoint import Checkpoint, load_processor
from drivekd.log import ProgressLine, logger
from drivekd.processor import INTERNVL
from drivekd.sample import CAPABILITIES, Capability, Sample

from .curves import Curves
from .measured_model import MeasuredModel
from .picks import CapabilityPick, pick, spans
from .plots import Measured, write_plots

SAMPLES_PER_CAPABILITY = 64

Samples = Mapping[Capability, Sequence[Sample]]


def analyze(config: RunConfig, out: Path) -> tuple[list[str], list[list[str]]]:
    """Write analysis.json and plots into `out`; returns a table of the picks (header, rows).

    Raises UsageError when `out` holds anything, ConfigError when student and teachers do not fit, and what reading records and
    checkpoints raises.
    """
    refuse_non_empty(out, "give a new --out")
    available = _by_capability(read_training_samples(config).labelled)
    samples = {name: choose(found, config.seed) for name, found in available.items()}
    pair = open_pair(config)
    if config.training.threads:
        torch.set_num_threads(config.training.threads)
    measured = measure(config, pair, samples)
    picks = {name: pick(name, curves, measured["teacher"].get(name)) for name, curves in measured["student"].items()}
    with whole_directory(out) as directory:
        write_whole_json(directory / "analysis.json", _to_json(config, measured, picks, available, samples))
        write_plots({who: found for who, found in measured.items() if found}, picks, directory)
    return _table(picks)


@dataclass(frozen=True)
class Pair:
    """The student's checkpoint and, by capability, the teachers' ones. tiles: InternVL's of a camera, None in other families."""

    student: Checkpoint
    teachers: Mapping[Capability, Checkpoint]
    tiles: str | None = None


def open_pair(config: RunConfig) -> Pair:
    """What `train` would refuse is refused before any forward pass."""
    student = Checkpoint.open(config.student.checkpoint).with_grounding(config.data.grounding_tokens)
    processor = load_processor(student, camera_size_px=config.data.camera_size_px, tiles=config.data.tiles)
    tiles = str(processor.images.tiling) if processor.model_type == INTERNVL else None
    return Pair(student, open_teachers(config, processor), tiles)


def choose(samples: Sequence[Sample], seed: int) -> list[Sample]:
    """At most 64, drawn over the whole file: its first ones may all ask about one frame, and be alike for that alone."""
    count = min(SAMPLES_PER_CAPABILITY, len(samples))
    drawn = np.random.default_rng([seed, 5]).choice(len(samples), count, replace=False)
    return [samples[index] for index in sorted(drawn)]


def measure(config: RunConfig, pair: Pair, samples: Samples) -> Measured:
    """Curves of the student on every capability, and of each teacher on its own. One model is in memory at a time."""
    teachers = {name: checkpoint for name, checkpoint in pair.teachers.items() if name in samples}
    precision = config.teachers.precision if config.teachers.precision != "training" else config.training.precision
    device = config.training.device if config.teachers.device == "student" else config.teachers.device
    found: dict[Capability, Curves] = {}
    student = _measure(config, "student", pair.student, samples, config.training.device, config.training.precision, pair.tiles)
    for checkpoint in dict.fromkeys(teachers.values()):
        taught = {name: samples[name] for name, other in teachers.items() if other is checkpoint}
        found |= _measure(config, "teacher", checkpoint, taught, device, precision, pair.tiles)
    return {"student": student, "teacher": {name: found[name] for name in CAPABILITIES if name in found}}


def _measure(
    config: RunConfig, who: str, checkpoint: Checkpoint, samples: Samples, device: str, precision: str, tiles: str | None
) -> dict[Capability, Curves]:
    model = MeasuredModel(checkpoint, resolve_device(device), DTYPES[precision], config.data.camera_size_px, tiles)
    progress = ProgressLine()
    curves: dict[Capability, Curves] = {}
    try:
        for name, chosen in samples.items():

            def show(done: int, name: str = name, total: int = len(chosen)) -> None:
                progress.show(f"{who} {checkpoint.path.name}, {name}: {done} of {total} samples", final=done == total)

            curves[name] = model.curves(chosen, on_progress=show)
    finally:
        progress.close()
    return curves


def _by_capability(samples: Sequence[Sample]) -> dict[Capability, list[Sample]]:
    """The capabilities that have labelled samples."""
    found = {name: [sample for sample in samples if sample.capability == name] for name in CAPABILITIES}
    for name in (name for name, chosen in found.items() if not chosen):
        logger.warning(f"data.train has no record of {name}: its layers are not chosen")
    return {name: chosen for name, chosen in found.items() if chosen}


def _to_json(
    config: RunConfig, measured: Measured, picks: Mapping[Capability, CapabilityPick], available: Samples, samples: Samples
) -> dict[str, object]:
    paths = config.teachers.paths()
    depth = next(iter(measured["student"].values())).depth
    return {
        "pair": {
            "student": {"checkpoint": str(config.student.checkpoint), "depth": depth},
            "teacher": {name: {"checkpoint": str(paths[name]), "depth": c.depth} for name, c in measured["teacher"].items()},
        },
        "capabilities": {name: found.to_json() for name, found in picks.items()},
        "curves": {who: {name: curves.to_json() for name, curves in found.items()} for who, found in measured.items()},
        "samples": {name: {"analysed": len(samples[name]), "available": len(available[name])} for name in samples},
    }


def _table(picks: Mapping[Capability, CapabilityPick]) -> tuple[list[str], list[list[str]]]:
    header = ["capability", "student layers", "teacher layers", "signal", "reason"]
    rows = [[n, spans(p.student_layers), spans(p.teacher_layers) or "-", p.signal, p.reason] for n, p in picks.items()]
    return header, rows
