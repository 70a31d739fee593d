"""What every question about one frame shares: the system prompt and the camera images, read once and kept.

The prefix is read in chunks: the system prompt, then each image with the text up to the next one. A later frame keeps the K/V of
all chunks before the first that differs, and the vision embeddings of every image that is the same. Where chunks begin follows
from the ids alone, so a frame's K/V does not depend on what was read before it, to the last bit on an engine that repeats itself.

P tokens of a prefix, N images, T tokens of an image, D hidden size, A rotary axes
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import count, pairwise
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from drivekd.errors import RunnerError
from drivekd.images import RGBImage
from drivekd.processor import Processor
from drivekd.runtime.answers.deadline import Deadline
from drivekd.runtime.decoder.protocol import Cache, Decoder, Embeds
from drivekd.runtime.engine.runner import Runner

# Tokens of one prefill call: what a deadline waits for at most. An image of 258 costs no more when read alone: 516 tokens took
# 4.2 CPU seconds in two calls, 4.4 in one (InternVL3-1B int4, onnxruntime 1.31 on one core).
CHUNK = 512

ImageEmbeds: TypeAlias = NDArray[np.float32]  # [T, D]


@dataclass(frozen=True)
class _Chunk:
    """Tokens that one call of the decoder reads. image: index of the image in it, None = text alone."""

    start: int
    stop: int
    image: int | None


@dataclass(frozen=True, eq=False)
class _Layout:
    """The prefix of a prompt with N images. ids [P], positions [A, 1, P], image_starts: index of each image's first token."""

    ids: NDArray[np.int64]
    positions: NDArray[np.int64]
    image_starts: tuple[int, ...]

    def chunks(self) -> list[_Chunk]:
        borders = pairwise([0, *self.image_starts, len(self.ids)])
        return [
            _Chunk(start, min(start + CHUNK, stop), image if image >= 0 else None)
            for image, (first, stop) in enumerate(borders, start=-1)
            for start in range(first, stop, CHUNK)
        ]

    def next_position(self, num_tokens: int) -> int:
        """Where text behind the first tokens goes on."""
        return int(self.positions[:, :, :num_tokens].max(initial=-1)) + 1


@dataclass(frozen=True, eq=False)
class _Encoded:
    """A camera's tile [H, W, 3], or its tiles one below the other, and what the language model sees. stamp: of this encoding."""

    tile: RGBImage
    embeds: ImageEmbeds
    stamp: int


_Key: TypeAlias = tuple[bytes, int]  # of a chunk: its ids, and the stamp of its image


@dataclass(frozen=True, eq=False)
class _Kept:
    """K/V of the chunks with these keys."""

    keys: tuple[_Key, ...]
    cache: Cache


class PrefixReader:
    """Tiles to K/V through the vision graph and the decoder; both results are kept from frame to frame.

    Of the last read: timings_ms "vision" and "prefill", 0 where nothing ran; counts "images_encoded" and "tokens_prefilled".
    """

    def __init__(self, vision: Runner, decoder: Decoder, processor: Processor) -> None:
        self._vision = vision
        self._decoder = decoder
        self._processor = processor
        self._layouts: dict[int, _Layout] = {}  # by number of images
        self._stamps = count(1)
        self._encoded: dict[str, _Encoded] = {}  # by camera
        self._kept: _Kept | None = None
        self._start_counting()

    def read(self, tiles: Mapping[str, RGBImage] | Sequence[RGBImage], deadline: Deadline) -> Cache | None:
        """K/V [1, ...] of system prompt and images, in the order of `tiles` by camera; it is spent when another frame is read.

        None when the deadline said to end; what was read until then is kept.
        Raises RunnerError: the engine failed, or gave numbers that are not finite; nothing is kept then.
        """
        named = tiles if isinstance(tiles, Mapping) else {str(i): tile for i, tile in enumerate(tiles)}
        self._start_counting()
        try:
            images = self._encode(named, deadline)
            return None if images is None else self._prefill(images, deadline)
        except RunnerError:
            self.forget()  # what a failing engine left behind is not worth a guess
            raise

    def forget(self) -> None:
        """Drop all that is kept."""
        self._encoded, self._kept = {}, None

    def num_tokens(self, num_images: int) -> int:
        """Of a prefix with so many images: system prompt, images, and the text between."""
        return len(self._layout(num_images).ids)

    def image_embeds(self, tiles: Sequence[RGBImage]) -> NDArray[np.float32]:
        """Tiles [H, W, 3] -> what the language model sees of them, [N, T, D]; computed unless the last read had the image."""
        kept = list(self._encoded.values())
        found = [next((one.embeds for one in kept if np.array_equal(one.tile, tile)), None) for tile in tiles]
        return np.stack([self._vision_pass(tile) if one is None else one for one, tile in zip(found, tiles, strict=True)])

    def _start_counting(self) -> None:
        self.timings_ms: dict[str, float] = {"vision": 0.0, "prefill": 0.0}
        self.counts: dict[str, int] = {"images_encoded": 0, "tokens_prefilled": 0}

    def _layout(self, num_images: int) -> _Layout:
        if num_images not in self._layouts:
            ids = self._processor.prompts.prefix(num_images)
            places = np.flatnonzero(np.asarray(ids) == self._processor.prompts.image_token_id)
            starts = places[:: self._processor.chat.tokens_per_image].tolist()
            positions = self._processor.prefix_positions(ids)[:, None]
            self._layouts[num_images] = _Layout(np.asarray(ids, np.int64), positions, tuple(starts))
        return self._layouts[num_images]

    def _encode(self, tiles: Mapping[str, RGBImage], deadline: Deadline) -> list[_Encoded] | None:
        """Run the vision graph over the images that changed, one by one: one is the longest that a deadline waits for."""
        self._encoded = {camera: encoded for camera, encoded in self._encoded.items() if camera in tiles}
        for camera, tile in tiles.items():
            kept = self._encoded.get(camera)
            if kept is not None and np.array_equal(kept.tile, tile):
                continue
            if deadline.interruption():
                return None
            start_ms = deadline.elapsed_ms()
            embeds = self._vision_pass(tile)
            self._encoded[camera] = _Encoded(tile.copy(), embeds, next(self._stamps))  # a copy: cameras reuse their buffers
            self._count("images_encoded", 1, "vision", deadline.elapsed_ms() - start_ms)
        return [self._encoded[camera] for camera in tiles]

    def _vision_pass(self, tile: RGBImage) -> ImageEmbeds:
        pixel_values = self._processor.normalize(tile)[None]  # [1, *pixel_shape]
        embeds = self._vision.infer({"pixel_values": pixel_values})["image_embeds"].numpy()[0]  # [T, D]
        if not np.isfinite(embeds).all():
            raise RunnerError("the vision graph gave values that are not finite; it or its weights are broken: drivekd check")
        return np.asarray(embeds)

    def _prefill(self, images: Sequence[_Encoded], deadline: Deadline) -> Cache | None:
        """Read all chunks behind those that are kept."""
        layout = self._layout(len(images))
        chunks = layout.chunks()
        keys = tuple(_key(layout, chunk, images) for chunk in chunks)
        num_kept = 0 if self._kept is None else _num_common(self._kept.keys, keys)
        cache = self._kept_cache(layout, chunks, num_kept)
        for i, chunk in enumerate(chunks[num_kept:], start=num_kept):
            if deadline.interruption():
                return None
            start_ms = deadline.elapsed_ms()
            cache = self._read_chunk(layout, chunk, images, cache)
            self._kept = _Kept(keys[: i + 1], cache)
            self._count("tokens_prefilled", chunk.stop - chunk.start, "prefill", deadline.elapsed_ms() - start_ms)
        return cache

    def _kept_cache(self, layout: _Layout, chunks: Sequence[_Chunk], num_kept: int) -> Cache:
        """The cache behind the first chunks, with room for the others; what was read behind them is gone."""
        num_tokens, num_all = sum(chunk.stop - chunk.start for chunk in chunks[:num_kept]), len(layout.ids)
        kept, self._kept = self._kept, None
        if kept is None or num_kept == 0:
            del kept  # freed before the new one grows
            return self._decoder.prefix_cache(room=num_all)
        cache = kept.cache
        if num_kept < max(len(chunks), len(kept.keys)):
            cache = cache.truncated(num_tokens, layout.next_position(num_tokens), room=num_all - num_tokens)
        self._kept = _Kept(kept.keys[:num_kept], cache)
        return cache

    def _read_chunk(self, layout: _Layout, chunk: _Chunk, images: Sequence[_Encoded], cache: Cache) -> Cache:
        place = slice(chunk.start, chunk.stop)
        logits, cache = self._decoder.forward(self._embeds(layout, chunk, images), cache, layout.positions[:, :, place])
        if not np.isfinite(logits).all():  # they have seen all K/V so far, which would be kept
            raise RunnerError("the decoder gave logits that are not finite; it or its weights are broken: drivekd check")
        return cache

    def _embeds(self, layout: _Layout, chunk: _Chunk, images: Sequence[_Encoded]) -> Embeds:
        """Embeddings [1, chunk, D]: of text, and the image's own where its tokens stand."""
        ids = layout.ids[None, chunk.start : chunk.stop]
        embeds = self._decoder.embed(ids)
        if chunk.image is not None:
            places = ids[0] == self._processor.prompts.image_token_id
            first = chunk.start - layout.image_starts[chunk.image]  # tokens of this image in earlier chunks
            embeds[0, places] = images[chunk.image].embeds[first : first + int(places.sum())]
        return embeds

    def _count(self, what: str, number: int, stage: str, took_ms: float) -> None:
        self.counts[what] += number
        self.timings_ms[stage] += took_ms


def _key(layout: _Layout, chunk: _Chunk, images: Sequence[_Encoded]) -> _Key:
    return layout.ids[chunk.start : chunk.stop].tobytes(), 0 if chunk.image is None else images[chunk.image].stamp


def _num_common(kept: Sequence[_Key], keys: Sequence[_Key]) -> int:
    """How many chunks both begin with."""
    return next((i for i, (a, b) in enumerate(zip(kept, keys, strict=False)) if a != b), min(len(kept), len(keys)))
