"""What a run will have on disk at its fullest, cache and run directory, and what to change where it is too much."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from drivekd.config import RunConfig
from drivekd.distill.dry_run.measured_steps import FileCosts, existing_parent, frozen_towers
from drivekd.distill.dry_run.run_times import num_bests, num_checkpoints
from drivekd.distill.teachers.caches import Caches, CacheSize
from drivekd.distill.teachers.disk import RESERVE_BYTES
from drivekd.distill.teachers.features import vision_digest
from drivekd.distill.training.trainer import Trainer

LOG_BYTES_A_STEP = 3_000  # metrics.jsonl and TensorBoard, seven terms: measured 1,150 and 1,650


@dataclass(frozen=True)
class Disk:
    """Bytes. cache: when complete; there: of it already; run: the run directory at its fullest; free: of the disk of each.

    shared: both lie on one disk.
    """

    cache: CacheSize
    there: int
    cache_free: int
    run: int
    run_free: int
    shared: bool

    @property
    def missing(self) -> int:
        """Of the cache."""
        return max(0, self.cache.total - self.there) if self.cache.by_store else 0

    def lacks(self) -> list[tuple[str, int, int]]:
        """What, bytes needed, bytes free: for each disk that is too small. A cache leaves RESERVE_BYTES free."""
        cache = self.missing + RESERVE_BYTES if self.cache.by_store else 0
        if self.shared:
            needs = [("cache and run directory", cache + self.run, self.run_free)]
        else:
            needs = [("the cache", cache, self.cache_free), ("the run directory", self.run, self.run_free)]
        return [(what, need, free) for what, need, free in needs if need > free]


def disk_needs(config: RunConfig, out: Path, cache: CacheSize, there: int, files: FileCosts) -> Disk:
    """out: the run directory, cache: its complete size (empty without one), there: bytes of it that are on disk already."""
    run_place = existing_parent(out)
    cache_place = existing_parent(config.cache.directory or out)
    run = run_bytes(config, files)
    free = shutil.disk_usage(run_place).free
    shared = os.stat(run_place).st_dev == os.stat(cache_place).st_dev
    return Disk(cache, there, shutil.disk_usage(cache_place).free, run, free, shared)


def run_bytes(config: RunConfig, files: FileCosts) -> int:
    """The run directory at its fullest: a new checkpoint is whole before the oldest goes, and so is a new best/; and final/."""
    training = config.training
    kept = min(num_checkpoints(training), training.keep_checkpoints + 1)
    students = 1 + min(2, num_bests(training))
    return kept * files.checkpoint_bytes + students * files.final_bytes + training.steps * LOG_BYTES_A_STEP


def cheaper_on_disk(config: RunConfig, disk: Disk, files: FileCosts) -> list[tuple[str, int]]:
    """Settings (key=value) that need less, with the bytes that each saves, the cheapest first: less to redo after a kill, then
    values rounded to fp16, then features computed again."""
    found: list[tuple[str, int]] = []
    fewer = config.training.model_copy(update={"keep_checkpoints": 1})
    if config.training.keep_checkpoints > 1:
        saved = disk.run - run_bytes(config.model_copy(update={"training": fewer}), files)
        found.append(("training.keep_checkpoints=1", saved))
    if disk.cache.by_store and config.cache.precision == "fp32":
        found.append(("cache.precision=fp16", disk.missing - disk.cache.total // 2))
    features = sum(num for name, num in disk.cache.by_store.items() if name.startswith("image features"))
    if features:
        found.append(("cache.vision=false", features))
    if disk.cache.by_store:
        found.append(("cache.directory=null", disk.missing + RESERVE_BYTES))
    return [(setting, saved) for setting, saved in found if saved > 0]


def bytes_there(config: RunConfig, trainer: Trainer) -> int:
    """Bytes of this run's own stores that earlier runs have written; they are opened and nothing is put."""
    if config.cache.directory is None or not config.cache.directory.is_dir():
        return 0
    caches = Caches(config, trainer.collate)
    if trainer.teachers is not None:
        caches.attach(trainer.teachers)
        trainer.teachers.caches = {}
    for tower in frozen_towers(trainer):
        caches.vision_store(vision_digest(tower.model), tower.dtype)
    return caches.num_bytes


def size(num_bytes: float) -> str:
    """In the largest unit of which there are two."""
    for unit, scale in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if num_bytes >= 2 * scale:
            return f"{num_bytes / scale:,.1f} {unit}"
    return f"{num_bytes / 1e6:,.3f} MB"


def first_that_fits(needed: Sequence[tuple[str, int]], lacking: int) -> str:
    """Of (setting, bytes saved): the first one that saves enough, else as many of the first as it takes, else words."""
    for setting, saved in needed:
        if saved >= lacking:
            return f"{setting} (saves {size(saved)})"
    total, settings = 0, list[str]()
    for setting, saved in needed:
        total += saved
        settings.append(setting)
        if total >= lacking:
            return f"{' and '.join(settings)} (save {size(total)})"
    return f"free {size(lacking)}, or choose another disk"
