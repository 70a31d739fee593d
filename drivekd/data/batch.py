"""Samples to tensors. B = samples, N = images, S = longest sequence in the batch.

Padding is on the right; padded positions are neither text nor vision.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from drivekd.data.sample import CAPABILITIES, Sample
from drivekd.errors import DataError, UsageError
from drivekd.images import RGBImage, load_image, normalize, resize
from drivekd.processor import Processor

IGNORED_LABEL = -100


@dataclass(frozen=True)
class Batch:
    """pixel_values [N, 3, H, W] float; input_ids, labels [B, S] int64 (labels: IGNORED_LABEL outside the answer);
    attention_mask, vision_mask, prompt_mask [B, S] bool; capability [B] int64, an index into CAPABILITIES;
    labelled [B] bool."""

    pixel_values: Tensor
    input_ids: Tensor
    labels: Tensor
    attention_mask: Tensor
    vision_mask: Tensor
    prompt_mask: Tensor
    capability: Tensor
    labelled: Tensor

    @property
    def num_tokens(self) -> int:
        return int(self.attention_mask.sum())

    def to(self, device: torch.device) -> Batch:
        return replace(self, **{name: value.to(device) for name, value in vars(self).items()})


class Collator:
    """Makes a Batch of Samples with one processor; resized tiles are kept in memory, bounded by `cache_bytes`."""

    def __init__(self, processor: Processor, *, cache_bytes: int = 512 << 20) -> None:
        self._processor = processor
        size_px = processor.images.size_px
        self._tile = lru_cache(maxsize=max(1, cache_bytes // (3 * size_px * size_px)))(self._read_tile)

    def _read_tile(self, path: Path) -> RGBImage:
        return resize(load_image(path), self._processor.images.size_px)

    def __call__(self, samples: Sequence[Sample]) -> Batch:
        prompts, answers = zip(*(self._token_ids(sample) for sample in samples), strict=True)
        length = max(len(prompt) + len(answer) for prompt, answer in zip(prompts, answers, strict=True))
        input_ids = torch.zeros(len(samples), length, dtype=torch.long)
        labels = torch.full_like(input_ids, IGNORED_LABEL)
        attention_mask = torch.zeros_like(input_ids, dtype=torch.bool)
        prompt_mask = torch.zeros_like(attention_mask)
        for row, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
            start, end = len(prompt), len(prompt) + len(answer)
            input_ids[row, :end] = torch.tensor(prompt + answer)
            labels[row, start:end] = input_ids[row, start:end]
            attention_mask[row, :end] = True
            prompt_mask[row, :start] = True
        return Batch(
            pixel_values=self._pixel_values(samples),
            input_ids=input_ids,
            labels=labels,
            attention_mask=attention_mask,
            vision_mask=(input_ids == self._processor.prompts.image_token_id) & attention_mask,
            prompt_mask=prompt_mask,
            capability=torch.tensor([CAPABILITIES.index(sample.capability) for sample in samples]),
            labelled=torch.tensor([sample.answer is not None for sample in samples]),
        )

    def _token_ids(self, sample: Sample) -> tuple[list[int], list[int]]:
        """Ids of prompt and answer. Raises DataError naming the record when a text holds a chat marker."""
        prompts = self._processor.prompts
        try:
            prompt = prompts.prefix(len(sample.images)) + prompts.suffix(sample.question)
            return prompt, [] if sample.answer is None else prompts.answer(sample.answer)
        except UsageError as error:
            raise DataError(f"{sample.source}: {error}") from error

    def _pixel_values(self, samples: Sequence[Sample]) -> Tensor:
        tiles = [normalize(self._tile_of(sample, path), self._processor.images) for sample in samples for path in sample.images]
        return torch.from_numpy(np.stack(tiles))  # [N, 3, H, W]

    def _tile_of(self, sample: Sample, path: Path) -> RGBImage:
        try:
            return self._tile(path)
        except DataError as error:
            raise DataError(f"{sample.source}: images: {error}") from error
