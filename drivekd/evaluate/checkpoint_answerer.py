"""A checkpoint that answers many questions: each distinct image goes through the vision tower once, texts in batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from drivekd.digests import checkpoint_digest
from drivekd.errors import DataError
from drivekd.evaluate.generation import embed_prompts, generate_greedy
from drivekd.evaluate.scores import ImageSetting
from drivekd.images import PixelValues, load_image
from drivekd.models import encode_images, load_model
from drivekd.processor import load_processor
from drivekd.sample import Sample

_BATCHES_PER_CHUNK = 16  # questions whose image embeddings are held at once, in batches; bounds memory, not results
_THREADS = 4

T = TypeVar("T")


class CheckpointAnswerer:
    """Greedy texts of a checkpoint of any family. device: as torch names it. max_new_tokens: a longer answer is cut there."""

    def __init__(self, checkpoint: Path, *, device: str = "cpu", batch_size: int = 64, max_new_tokens: int = 24) -> None:
        self.name = str(checkpoint)
        self.digest = checkpoint_digest(checkpoint)
        self._processor = load_processor(checkpoint)
        self._device = torch.device(device)
        self._model = load_model(checkpoint).to(self._device).eval()
        self._batch_size = batch_size
        self._max_new_tokens = max_new_tokens

    @torch.inference_mode()
    def answers(
        self,
        samples: Sequence[Sample],
        *,
        images: ImageSetting = "clean",
        on_progress: Callable[[int, int], None] | None = None,
    ) -> list[str]:
        """Texts in the order of `samples`. Raises DataError naming the record with an image that cannot be read."""
        texts = [""] * len(samples)
        num_done = 0
        by_frame = sorted(range(len(samples)), key=lambda i: samples[i].images)
        for chunk in _slices(by_frame, self._batch_size * _BATCHES_PER_CHUNK):
            embeds = self._image_embeds([samples[i] for i in chunk], images)
            prompts = {i: self._prompt(samples[i]) for i in chunk}
            by_length = sorted(chunk, key=lambda i: len(prompts[i]))
            for batch in _slices(by_length, self._batch_size):
                vision = [torch.cat([embeds[image] for image in _shown(samples[i], images)]) for i in batch]
                for i, text in zip(batch, self._generate([prompts[i] for i in batch], vision), strict=True):
                    texts[i] = text
                num_done += len(batch)
                if on_progress is not None:
                    on_progress(num_done, len(samples))
        return texts

    def _prompt(self, sample: Sample) -> list[int]:
        prompts = self._processor.prompts
        return [*prompts.prefix(len(sample.images)), *prompts.suffix(sample.question)]

    def _generate(self, prompts: Sequence[Sequence[int]], vision: Sequence[Tensor]) -> list[str]:
        encoder = self._processor.prompts
        positions = [self._processor.prefix_positions(prompt) for prompt in prompts]  # of prefix and question
        generated = generate_greedy(
            self._model,
            *embed_prompts(self._model, prompts, vision, positions, encoder.image_token_id),
            end_id=encoder.end_of_turn_id,
            max_new_tokens=self._max_new_tokens,
        )
        return [encoder.decode(ids) for ids in generated]

    def _image_embeds(self, samples: Sequence[Sample], images: ImageSetting) -> dict[Path | None, Tensor]:
        """Vision tokens [T, D] of each distinct image; the black image has the key None."""
        users: dict[Path | None, Sample] = {}
        for sample in samples:
            for image in _shown(sample, images):
                users.setdefault(image, sample)
        embeds: dict[Path | None, Tensor] = {}
        with ThreadPoolExecutor(_THREADS) as pool:
            for keys in _slices(list(users), self._batch_size):
                tiles = list(pool.map(lambda key: self._pixel_values(key, users[key]), keys))
                pixel_values = torch.from_numpy(np.stack(tiles)).to(self._device)  # [N, *pixel_shape]
                embeds |= dict(zip(keys, encode_images(self._model, pixel_values), strict=True))  # [T, D] each
        return embeds

    def _pixel_values(self, image: Path | None, user: Sample) -> PixelValues:
        processor = self._processor
        if image is None:
            width, height = processor.images.tile_px
            return processor.normalize(np.zeros((height, width, 3), np.uint8))
        try:
            return processor.normalize(processor.resize(load_image(image)))
        except DataError as error:
            raise DataError(f"{user.source}: images: {error}") from error


def _shown(sample: Sample, images: ImageSetting) -> tuple[Path | None, ...]:
    return sample.images if images == "clean" else (None,) * len(sample.images)


def _slices(values: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    for start in range(0, len(values), size):
        yield values[start : start + size]
