"""Image features of student and teachers: each distinct picture once, and a frozen tower's results kept.

Teachers fine-tuned from one model with a frozen tower have its weights, so they share one `ImageFeatures` (`Towers`).
T tokens, D width.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor
from transformers import PreTrainedModel

from drivekd.config import StudentConfig
from drivekd.data.batch import Batch, Collator
from drivekd.files import file_digest
from drivekd.models import Part, encode_images, modules_of

FEATURE_CACHE_BYTES = 2 << 30


class FeatureStore(Protocol):
    """Where features outlive the run; `drivekd.distill.teachers.store.BlockStore` is one.

    get(key): a block, None = it is missing. put(key, block): keep a copy.
    """

    def get(self, key: str) -> Tensor | None: ...
    def put(self, key: str, block: Tensor) -> None: ...


class ImageFeatures:
    """Vision tower and projector of one model. frozen: results are kept in memory, and in `store` where one is set."""

    def __init__(
        self,
        model: PreTrainedModel,
        collate: Collator,
        device: torch.device,
        compute_dtype: torch.dtype,
        *,
        frozen: bool,
        cache_bytes: int = FEATURE_CACHE_BYTES,
    ) -> None:
        self.model = model
        self.frozen = frozen
        self.dtype = compute_dtype
        self.store: FeatureStore | None = None
        self._collate = collate
        self._device = device
        self._kept: OrderedDict[Path, Tensor] = OrderedDict()
        self._cache_bytes = cache_bytes
        self._bytes = 0

    def __call__(self, batch: Batch) -> Tensor:
        """The features of a batch's vision tokens in order, [number of vision tokens, D]."""
        paths = list(dict.fromkeys(path for images in batch.images for path in images))
        features = self._frozen_features(paths, batch) if self.frozen else self._encode(paths, batch)
        return torch.cat([features[path] for images in batch.images for path in images])

    def _frozen_features(self, paths: Sequence[Path], batch: Batch) -> dict[Path, Tensor]:
        found = {path: value for path in paths if (value := self._lookup(path)) is not None}
        for path in paths:
            if path not in found:
                found[path] = self._encode_alone(path, batch)
        self._forget_others(paths)
        return found

    @torch.no_grad()
    def _encode_alone(self, path: Path, batch: Batch) -> Tensor:
        """By itself: the last bits depend on how many share a pass, and a resumed run misses other pictures than the first."""
        value = self._encode([path], batch)[path]
        self._keep(path, value)
        if self.store is not None:
            self.store.put(file_digest(path), value.cpu())
        return value

    def _encode(self, paths: Sequence[Path], batch: Batch) -> dict[Path, Tensor]:
        pixels = self._collate.pixel_values(paths, batch.samples[0].source).to(self._device)
        with torch.autocast(self._device.type, self.dtype, enabled=self.dtype != torch.float32):
            return dict(zip(paths, encode_images(self.model, pixels), strict=True))

    def _lookup(self, path: Path) -> Tensor | None:
        if path in self._kept:
            self._kept.move_to_end(path)
            return self._kept[path]
        stored = self.store.get(file_digest(path)) if self.store is not None else None
        if stored is not None:
            stored = stored.to(self._device)
            self._keep(path, stored)
        return stored

    def _keep(self, path: Path, value: Tensor) -> None:
        self._kept[path] = value
        self._bytes += value.nbytes

    def _forget_others(self, paths: Sequence[Path]) -> None:
        """Down to the bound, oldest first; never this batch's own, which the next teacher asks for."""
        while self._bytes > self._cache_bytes and (oldest := next(iter(self._kept))) not in paths:
            self._bytes -= self._kept.pop(oldest).nbytes


class Towers:
    """Frozen towers by their weights: models that share them on one device share one `ImageFeatures`.

    store_for: opens the store on disk of a tower, by the digest of its weights and its dtype; None = memory alone.
    cache_bytes: of features that each keeps in memory.
    """

    def __init__(
        self,
        collate: Collator,
        store_for: Callable[[str, torch.dtype], FeatureStore | None] | None = None,
        *,
        cache_bytes: int = FEATURE_CACHE_BYTES,
    ) -> None:
        self._cache_bytes = cache_bytes
        self.processor = collate.processor
        self._collate = collate
        self._store_for = store_for
        self._towers: dict[tuple[str, torch.dtype, torch.device], ImageFeatures] = {}

    def of(self, model: PreTrainedModel, device: torch.device, dtype: torch.dtype) -> ImageFeatures:
        """The features of a model whose vision encoder and projector do not train."""
        weights = vision_digest(model)
        key = (weights, dtype, device)
        if key not in self._towers:
            self._towers[key] = ImageFeatures(model, self._collate, device, dtype, frozen=True, cache_bytes=self._cache_bytes)
            self._towers[key].store = self._store_for(weights, dtype) if self._store_for else None
        return self._towers[key]


def vision_digest(model: PreTrainedModel) -> str:
    """sha256 over the weights of vision encoder and projector: models that agree in it give the same features."""
    total = hashlib.sha256()
    parts: tuple[Part, ...] = ("vision_encoder", "projector")
    for name in parts:
        for module in modules_of(model, name):
            for key, value in sorted(module.state_dict().items()):
                total.update(f"{name}.{key} {value.dtype} {tuple(value.shape)}".encode())
                total.update(value.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return total.hexdigest()


def trains_vision(config: StudentConfig) -> bool:
    """Whether any weight in front of the language model moves."""
    return bool({"vision_encoder", "projector"} & set(config.train))
