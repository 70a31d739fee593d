"""What a run keeps on disk: targets of text-to-vision signals, image features of frozen towers; keys, sizes and filling.

A store's spec names everything that its blocks depend on: another teacher, tokenizer, processor or signal is another store, and
an old one is never read by mistake.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from drivekd.config import RunConfig
from drivekd.data.batch import Collator
from drivekd.data.packs import Pack, micro_batches
from drivekd.distill.rows import mixing_matrix
from drivekd.distill.signals import Signal
from drivekd.distill.teachers.disk import require_space
from drivekd.distill.teachers.features import trains_vision
from drivekd.distill.teachers.signal_cache import SignalCache
from drivekd.distill.teachers.store import BlockStore
from drivekd.distill.teachers.teachers import Teachers
from drivekd.files import checkpoint_digest
from drivekd.hf_checkpoint import Checkpoint
from drivekd.log import ProgressLine
from drivekd.models import language_shape
from drivekd.sample import CAPABILITIES, Capability, Sample
from drivekd.tiling import Tiling

VERSION = 1  # raise it when the meaning of a stored block changes
BYTES = {"fp32": 4, "fp16": 2, "bf16": 2}


@dataclass(frozen=True)
class CacheSize:
    """Bytes that a complete cache takes, by store."""

    by_store: Mapping[str, int]

    @property
    def total(self) -> int:
        """Bytes of all stores."""
        return sum(self.by_store.values())


class Caches:
    """The stores of a run, all below `cache.directory`; without one, nothing is kept. writer: this process's rank."""

    def __init__(self, config: RunConfig, collate: Collator, *, writer: int = 0) -> None:
        self._config = config
        self._collate = collate
        self.writer = writer
        self._stores: list[BlockStore] = []

    def vision_store(self, weights: str, dtype: torch.dtype) -> BlockStore | None:
        """Where the features of a frozen tower with these weights are kept."""
        if not self._config.cache.vision:
            return None
        images = asdict(self._collate.processor.images)
        return self._open({"kind": "vision", "version": VERSION, "weights": weights, "images": images, "dtype": str(dtype)})

    def attach(self, teachers: Teachers) -> None:
        """Give every signal that can be cached its store."""
        tiles = str(self._collate.processor.images.tiling)
        for name, signal in teachers.signals.items():
            if self._config.cache.signals and can_be_cached(signal):
                store = self._open(_signal_spec(self._config, name, signal, teachers, tiles))
                if store is not None:
                    teachers.caches[name] = SignalCache(store)

    def require_space(self, size: CacheSize) -> None:
        """Raises TrainingError when a complete cache would not fit on the disk, beside what is there already."""
        directory = self._config.cache.directory
        if directory is not None:
            require_space(directory, max(0, size.total - self.num_bytes), "the cache of teachers and vision towers")

    @property
    def num_bytes(self) -> int:
        """What the open stores hold on disk."""
        return sum(store.num_bytes for store in self._stores)

    def flush(self) -> None:
        """Make durable what was put."""
        for store in self._stores:
            store.flush()

    def refresh(self) -> None:
        """See what other processes have made durable since."""
        for store in self._stores:
            store.refresh()

    def close(self) -> None:
        """Write what is pending, and let go of the files."""
        for store in self._stores:
            store.close()

    def _open(self, spec: dict[str, Any]) -> BlockStore | None:
        settings = self._config.cache
        if settings.directory is None:
            return None
        self._stores.append(BlockStore(settings.directory, spec, writer=self.writer, dtype=settings.precision))
        return self._stores[-1]


def can_be_cached(signal: Signal) -> bool:
    """Text rows against a frame's vision tokens are small; whole maps are 77 MB a six-camera sample and are made live."""
    return signal.compares_attention and signal.form == "text_to_vision"


def cache_size(
    config: RunConfig, student: Checkpoint, teachers: Teachers | None, collate: Collator, samples: Sequence[Sample]
) -> CacheSize:
    """What a complete cache of these samples takes on disk, at most: teachers with equal vision weights share their features."""
    scalar = BYTES[config.cache.precision]
    sizes: dict[str, int] = {}
    if config.cache.signals and teachers is not None:
        for name, signal in teachers.signals.items():
            if can_be_cached(signal):
                taught = taught_by(name, config, samples)
                sizes[name] = scalar * len(signal.student_layers) * _signal_scalars(taught, collate)
    if config.cache.vision:
        tokens = len({path for sample in samples for path in sample.images}) * collate.processor.chat.tokens_per_image
        frozen = {"student": language_shape(student).width} if not trains_vision(config.student) else {}
        found = teachers.by_capability.values() if teachers is not None else ()
        live = {str(teacher.checkpoint.path): teacher.shape.width for teacher in found}
        for reader, width in (frozen | live).items():
            sizes[f"image features, {reader}"] = scalar * tokens * width
    return CacheSize(sizes)


def taught_by(name: Capability, config: RunConfig, samples: Iterable[Sample]) -> list[Sample]:
    """The samples that (may) learn from one teacher."""
    taught = _taught_capabilities(name, config)
    return [sample for sample in samples if sample.capability in taught]


def fill(
    teachers: Teachers, config: RunConfig, collate: Collator, packs: Sequence[Pack], device: torch.device, caches: Caches
) -> None:
    """Ask every teacher that has a cache about every pack; what is there already costs a lookup."""
    progress = ProgressLine()
    taught = {name: _taught_capabilities(name, config) for name in teachers.caches}
    chunks = micro_batches(packs, config.training.micro_batch_size)
    try:
        for number, chunk in enumerate(chunks, 1):
            batch = collate(chunk).to(device)
            wanted = {
                name: tuple(index for index, sample in enumerate(batch.samples) if sample.capability in capabilities)
                for name, capabilities in taught.items()
            }
            teachers.targets(batch, {name: samples for name, samples in wanted.items() if samples})
            if caches.writer == 0:  # one line, not one of each process
                done = f"teacher cache {number}/{len(chunks)}  {caches.num_bytes / 1e6:,.0f} MB"
                progress.show(done, final=number == len(chunks))
    finally:
        progress.close()
    caches.flush()


def _taught_capabilities(name: Capability, config: RunConfig) -> set[Capability]:
    """Whose samples (may) learn from this teacher."""
    column = mixing_matrix(config.signals.mixing)[:, CAPABILITIES.index(name)]
    return {capability for capability, weight in zip(CAPABILITIES, column.tolist(), strict=True) if weight > 0}


def _signal_scalars(samples: Sequence[Sample], collate: Collator) -> int:
    """Rows times vision columns: a question's rows once each, the prefix's rows once a frame."""
    total, frames = 0, set[tuple[Path, ...]]()
    for sample in samples:
        prefix, question = collate.num_tokens(sample)
        columns = len(sample.images) * collate.processor.chat.tokens_per_image
        total += question * columns
        if sample.images not in frames:
            frames.add(sample.images)
            total += (prefix - columns) * columns
    return total


def _signal_spec(config: RunConfig, name: Capability, signal: Signal, teachers: Teachers, tiles: str) -> dict[str, Any]:
    return {
        "kind": f"signal-{name}",
        "version": VERSION,
        "teacher": checkpoint_digest(config.teachers.paths()[name]),  # weights, tokenizer, processor
        "layers": [list(group) for group in signal.teacher_groups],
        "dtype": str(teachers.by_capability[name].dtype),
        "camera_size_px": config.data.camera_size_px,
    } | ({"tiles": tiles} if tiles != str(Tiling()) else {})  # one tile a camera: the key that it had before there were grids
