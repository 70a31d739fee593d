"""What every question about one frame shares: the system prompt and the camera images, read once.

The last frame's K/V is kept, so that many questions about one frame cost one vision pass and one prefill.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from drivekd.chat import PromptEncoder
from drivekd.errors import UsageError
from drivekd.images import ImageSettings, RGBImage, check_image, normalize, resize

from .deadline import Deadline
from .decoder import Decoder
from .kv_cache import KvCache
from .runner import Runner


def camera_tiles(images: Mapping[str, RGBImage], cameras: Sequence[str], settings: ImageSettings) -> dict[str, RGBImage]:
    """Images by camera, uint8 [H, W, 3] -> tiles [S, S, 3], in the bundle's camera order (as given when it states none).

    Raises UsageError without images or with a camera that the bundle does not know, DataError on an image that is none.
    """
    if not images:
        raise UsageError("no images: a frame has at least one camera image")
    if cameras and (unknown := [name for name in images if name not in cameras]):
        raise UsageError(f"camera {unknown[0]!r} is unknown to this bundle; it has: {', '.join(cameras)}")
    names = [name for name in cameras if name in images] or list(images)
    return {name: resize(check_image(images[name], name), settings.size_px) for name in names}


@dataclass(frozen=True)
class _Kept:
    tiles: list[RGBImage]
    cache: KvCache


class PrefixReader:
    """Tiles to K/V through the vision graph and the decoder. timings_ms: "vision" and "prefill" of the last read."""

    def __init__(self, vision: Runner, decoder: Decoder, prompts: PromptEncoder, settings: ImageSettings) -> None:
        self._vision = vision
        self._decoder = decoder
        self._prompts = prompts
        self._settings = settings
        self._kept: _Kept | None = None
        self.timings_ms: dict[str, float] = {}

    def read(self, tiles: Sequence[RGBImage], deadline: Deadline) -> KvCache | None:
        """K/V [1, ...] of system prompt + images, None when the deadline has passed. Raises RunnerError."""
        self.timings_ms = {"vision": 0.0, "prefill": 0.0}
        if self._kept is not None and _same(self._kept.tiles, tiles):
            return self._kept.cache
        self.forget()  # freed before the new one grows
        start_ms = deadline.elapsed_ms()
        image_embeds = self._vision_pass(tiles, deadline)
        self.timings_ms["vision"] = deadline.elapsed_ms() - start_ms
        if image_embeds is None or deadline.expired():
            return None
        start_ms = deadline.elapsed_ms()
        _, cache = self._decoder.forward(self._prefix_embeds(image_embeds), self._decoder.empty_cache())
        self.timings_ms["prefill"] = deadline.elapsed_ms() - start_ms
        self._kept = _Kept([tile.copy() for tile in tiles], cache)  # cameras reuse their buffers
        return cache

    def forget(self) -> None:
        """Drop the kept frame."""
        self._kept = None

    def num_tokens(self, num_images: int) -> int:
        return len(self._prompts.prefix(num_images))

    def image_embeds(self, tiles: Sequence[RGBImage]) -> NDArray[np.float32]:
        """Tiles [S, S, 3] -> what the language model sees of them, [N, T, D]."""
        image_embeds = self._vision_pass(tiles, Deadline())
        assert image_embeds is not None
        return image_embeds

    def _vision_pass(self, tiles: Sequence[RGBImage], deadline: Deadline) -> NDArray[np.float32] | None:
        """Tile by tile, [N, T, D]: one tile is the longest that a deadline waits for."""
        embeds = []
        for tile in tiles:
            if deadline.expired():
                return None
            pixel_values = normalize(tile, self._settings)[None]  # [1, 3, S, S]
            embeds.append(self._vision.infer({"pixel_values": pixel_values})["image_embeds"].numpy())
        return np.concatenate(embeds)

    def _prefix_embeds(self, image_embeds: NDArray[np.float32]) -> NDArray[np.float32]:
        """image_embeds [N, T, D] put where the prompt has image tokens -> [1, P, D]."""
        ids = np.asarray([self._prompts.prefix(len(image_embeds))], np.int64)  # [1, P]
        embeds = self._decoder.embed(ids)
        places = ids == self._prompts.image_token_id
        embeds[places] = image_embeds.reshape(-1, image_embeds.shape[-1])
        return embeds


def _same(kept: Sequence[RGBImage], tiles: Sequence[RGBImage]) -> bool:
    return len(kept) == len(tiles) and all(np.array_equal(a, b) for a, b in zip(kept, tiles, strict=True))
