"""What `step.py` can time, by name: whose step, on which records, with which settings.

released...     `released.py`, the baseline
released+...    `measures.py`: the baseline with one measure, or with all
drivekd-...     the product: a Trainer on a written YAML file, as `drivekd train` starts one
unpacked, packed  the product on frames that are asked many questions
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import yaml

from benchmarks.distill.measures import MeasuredStep, Measures
from benchmarks.distill.models import BenchmarkFolder
from benchmarks.distill.released import (
    LEARNING_RATE,
    MIXED,
    ROUTED,
    Inputs,
    Mixing,
    inputs_from_sample,
    load_student,
    load_teacher,
    released_optimizer,
    released_step,
)
from drivekd.config import RunConfig, load_config
from drivekd.data.batch import Collator
from drivekd.data.packs import frame_packs
from drivekd.data.readers import read_samples
from drivekd.distill.training.train import read_training_samples
from drivekd.distill.training.trainer import Trainer
from drivekd.hf_checkpoint import load_processor
from drivekd.sample import CAPABILITIES

SIGNAL_WEIGHT = 1000.0  # attention MSEs are tiny: useful weights are in the hundreds and thousands
BASELINE = "released-mixed"

MixingName = Literal["released", "routed"]
MIXINGS: dict[MixingName, Mixing] = {"released": MIXED, "routed": ROUTED}
Step = Callable[[], object]


@dataclass(frozen=True)
class Variant:
    """code: whose step. settings: names of measures, or overrides of RunConfig, where {work} stands for the folder.
    mixing: of released and measures. records: which file. against: the variant that its ratios are taken to."""

    code: Literal["released", "measures", "drivekd"]
    settings: tuple[str, ...] = ()
    mixing: MixingName = "released"
    records: Literal["records", "frames"] = "records"
    against: str = BASELINE


MEASURES = ("capture", "early_exit", "supervised_logits", "vision_once", "teacher_cache", "plain_gradients", "coefficients")
LIVE = "cache.memory_mb=0"  # image features are not kept from step to step
CHECKPOINTED = "student.gradient_checkpointing=true"
CACHE, SIGNALS, VISION = "cache.directory={work}/cache", "cache.signals=true", "cache.vision=true"

VARIANTS: dict[str, Variant] = {
    BASELINE: Variant("released"),
    "released-routed": Variant("released", mixing="routed"),
    **{f"released+{name}": Variant("measures", (name,)) for name in MEASURES},
    "released+all": Variant("measures", ("all",)),
    "released-routed+all": Variant("measures", ("all",), mixing="routed"),
    "drivekd-mixed": Variant("drivekd", ("signals.mixing=released", LIVE)),
    "drivekd-mixed-checkpointed": Variant("drivekd", ("signals.mixing=released", LIVE, CHECKPOINTED)),
    "drivekd-routed-checkpointed": Variant("drivekd", ("signals.mixing=routed", LIVE, CHECKPOINTED)),
    "drivekd-mixed-vision": Variant("drivekd", ("signals.mixing=released", CACHE, VISION, "cache.signals=false")),
    "drivekd-routed": Variant("drivekd", ("signals.mixing=routed", LIVE)),
    "drivekd-routed-int4": Variant(
        "drivekd", ("signals.mixing=routed", LIVE, "student.quantization={}"), against="drivekd-routed"
    ),
    "drivekd-sampled": Variant("drivekd", ("signals.mixing=sampled", LIVE)),
    "drivekd-routed-cached": Variant("drivekd", ("signals.mixing=routed", CACHE, SIGNALS, VISION)),
    "unpacked": Variant("drivekd", ("signals.mixing=routed", LIVE), records="frames", against="unpacked"),
    "packed": Variant("drivekd", ("signals.mixing=routed", LIVE, "training.packing=frame"), records="frames", against="unpacked"),
}


def make_step(variant: Variant, folder: BenchmarkFolder, threads: int) -> Step:
    """Load the variant's models; each call is one optimizer step over all records. Raises ConfigError on settings that this
    version does not know."""
    if variant.code == "drivekd":
        return trainer(_whole_file_config(folder, variant, threads)).step
    window = released_inputs(folder, variant.records)
    mixing = MIXINGS[variant.mixing]
    weights = {str(name): SIGNAL_WEIGHT for name in CAPABILITIES}
    if variant.code == "measures":
        step = MeasuredStep(folder, Measures.named(*variant.settings), mixing, weights)
        return lambda: step(window)
    student = load_student(folder.student)
    teachers = {name: load_teacher(path) for name, path in folder.teachers.items()}
    optimizer, rng = released_optimizer(student), np.random.default_rng(0)
    return lambda: released_step(student, teachers, window, mixing, optimizer, rng, weights)


def released_inputs(folder: BenchmarkFolder, records: str) -> list[Inputs]:
    """All samples of a file."""
    processor = load_processor(folder.student)
    return [inputs_from_sample(sample, processor) for sample in read_samples(folder.path / f"{records}.json")]


def _whole_file_config(folder: BenchmarkFolder, variant: Variant, threads: int) -> RunConfig:
    """With packing, batch sizes count packs: a step takes all of them."""
    config = run_config(folder, variant.records, threads, variant.settings)
    if config.training.packing == "none":
        return config
    samples, collate = read_samples(folder.path / f"{variant.records}.json"), Collator(load_processor(folder.student))
    packs = frame_packs(samples, collate.num_tokens, config.training.max_pack_tokens, config.seed)
    return run_config(folder, variant.records, threads, (*variant.settings, f"training.batch_size={len(packs)}"))


def trainer(config: RunConfig) -> Trainer:
    """The product's trainer. Teachers are loaded now, not when first asked: their weights are not a step's memory."""
    made = Trainer(config, read_training_samples(config))
    for teacher in made.teachers.by_capability.values() if made.teachers else ():
        assert teacher.model is not None
    return made


def run_config(folder: BenchmarkFolder, records: str, threads: int, overrides: Sequence[str]) -> RunConfig:
    """Write the folder's YAML for a file of records and read it with overrides; a step sees every record once."""
    path = folder.path / f"{records}.yaml"
    count = len(json.loads((folder.path / f"{records}.json").read_text(encoding="utf-8")))
    weights: dict[str, object] = {name: {"weight": SIGNAL_WEIGHT} for name in CAPABILITIES}
    tree: dict[str, dict[str, object]] = {
        "student": {"checkpoint": "student", "train": ["language_model"]},
        "teachers": {name: checkpoint.name for name, checkpoint in folder.teachers.items()},
        "data": {"train": [f"{records}.json"]},
        "signals": {"weighting": "static", "grouping": "window", **weights},
        "optimizer": {"learning_rate": LEARNING_RATE},
        "training": {"steps": 1000, "batch_size": count, "micro_batch_size": 1, "device": "cpu", "threads": threads},
    }
    path.write_text(yaml.safe_dump(tree), encoding="utf-8")
    return load_config(path, [override.replace("{work}", str(folder.path)) for override in overrides])
