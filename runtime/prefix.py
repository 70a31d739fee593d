"""What every question about one frame shares: the system prompt and the camera images, read once.

The last frame's K/V is kept, so that many questions about one frame cost one vision pass and one prefill.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from drivekd.errors import UsageError
from drivekd.images import ImageForm, RGBImage, check_image, resize
from drivekd.processor import Processor

from .deadline import Deadline
from .decoder import Cache, Decoder
from .runner import Runner

CHUNK = 512  # tokens of one prefill call: what a deadline waits for at most; fewer make a CPU read the weights more often


def camera_tiles(images: Mapping[str, RGBImage], cameras: Sequence[str], settings: ImageForm) -> dict[str, RGBImage]:
    """Images by camera, uint8 [H, W, 3] -> uint8 tiles of the settings' size.

    They come in the bundle's camera order, or as given when it states none.
    Raises UsageError without images or with a camera that the bundle does not know, DataError on an image that is none.
    """
    if not images:
        raise UsageError("no images: a frame has at least one camera image")
    if cameras and (unknown := [name for name in images if name not in cameras]):
        raise UsageError(f"camera {unknown[0]!r} is unknown to this bundle; it has: {', '.join(cameras)}")
    names = [name for name in cameras if name in images] or list(images)
    return {name: resize(check_image(images[name], name), settings.tile_px) for name in names}


@dataclass(frozen=True)
class _Kept:
    tiles: list[RGBImage]
    cache: Cache


class PrefixReader:
    """Tiles to K/V through the vision graph and the decoder. timings_ms: "vision" and "prefill" of the last read."""

    def __init__(self, vision: Runner, decoder: Decoder, processor: Processor) -> None:
        self._vision = vision
        self._decoder = decoder
        self._processor = processor
        self._kept: _Kept | None = None
        self.timings_ms: dict[str, float] = {}

    def read(self, tiles: Sequence[RGBImage], deadline: Deadline) -> Cache | None:
        """K/V [1, ...] of system prompt + images, None when the deadline has passed. Raises RunnerError."""
        self.timings_ms = {"vision": 0.0, "prefill": 0.0}
        if self._kept is not None and _same(self._kept.tiles, tiles):
            return self._kept.cache
        self.forget()  # freed before the new one grows
        start_ms = deadline.elapsed_ms()
        image_embeds = self._vision_pass(tiles, deadline)
        self.timings_ms["vision"] = deadline.elapsed_ms() - start_ms
        if image_embeds is None:
            return None
        start_ms = deadline.elapsed_ms()
        cache = self._prefill(image_embeds, deadline)
        self.timings_ms["prefill"] = deadline.elapsed_ms() - start_ms
        if cache is None:
            return None
        self._kept = _Kept([tile.copy() for tile in tiles], cache)  # cameras reuse their buffers
        return cache

    def forget(self) -> None:
        """Drop the kept frame."""
        self._kept = None

    def num_tokens(self, num_images: int) -> int:
        return len(self._processor.prompts.prefix(num_images))

    def image_embeds(self, tiles: Sequence[RGBImage]) -> NDArray[np.float32]:
        """Tiles [H, W, 3] -> what the language model sees of them, [N, T, D]."""
        image_embeds = self._vision_pass(tiles, Deadline())
        assert image_embeds is not None
        return image_embeds

    def _vision_pass(self, tiles: Sequence[RGBImage], deadline: Deadline) -> NDArray[np.float32] | None:
        """Tile by tile, [N, T, D]: one tile is the longest that a deadline waits for."""
        embeds = []
        for tile in tiles:
            if deadline.expired():
                return None
            pixel_values = self._processor.normalize(tile)[None]  # [1, *pixel_shape]
            embeds.append(self._vision.infer({"pixel_values": pixel_values})["image_embeds"].numpy())
        return np.concatenate(embeds)

    def _prefill(self, image_embeds: NDArray[np.float32], deadline: Deadline) -> Cache | None:
        """Read the prefix of image_embeds [N, T, D] in chunks; None when the deadline has passed before the last one."""
        ids = self._processor.prompts.prefix(len(image_embeds))
        positions = self._processor.prefix_positions(ids)[:, None]  # [A, 1, P]
        embeds = self._prefix_embeds(ids, image_embeds)
        cache = self._decoder.empty_cache(room=len(ids))
        for start in range(0, len(ids), CHUNK):
            if deadline.expired():
                return None
            part = slice(start, start + CHUNK)
            _, cache = self._decoder.forward(embeds[:, part], cache, positions[:, :, part])
        return cache

    def _prefix_embeds(self, prefix: Sequence[int], image_embeds: NDArray[np.float32]) -> NDArray[np.float32]:
        """image_embeds [N, T, D] put where the prefix [P] has image tokens -> [1, P, D]."""
        ids = np.asarray([prefix], np.int64)  # [1, P]
        embeds = self._decoder.embed(ids)
        places = ids == self._processor.prompts.image_token_id
        embeds[places] = image_embeds.reshape(-1, image_embeds.shape[-1])
        return embeds


def _same(kept: Sequence[RGBImage], tiles: Sequence[RGBImage]) -> bool:
    return len(kept) == len(tiles) and all(np.array_equal(a, b) for a, b in zip(kept, tiles, strict=True))
