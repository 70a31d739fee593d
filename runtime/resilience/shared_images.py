"""Camera images between two processes, in memory that both map.

An unnamed file in memory whose descriptor the child inherits, not `multiprocessing.shared_memory`: a named block outlives a
crash of both sides, and before Python 3.13 a killed child's resource tracker takes the block away from its parent. This one is
gone with the last process that maps it. It is reused frame after frame and grows to the largest frame, never more.

    page 0    the number of the newest frame that nobody waits for any more (uint64)
    then      the images, each at a multiple of 64 bytes
"""

from __future__ import annotations

import mmap
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from drivekd.errors import RunnerError
from drivekd.images import RGBImage, check_image

HEADER_BYTES = 4096
ALIGNMENT_BYTES = 64  # a cache line


@dataclass(frozen=True)
class PlacedImage:
    """Where an image lies. shape: [H, W, 3]."""

    camera: str
    offset: int
    shape: tuple[int, ...]

    @property
    def end(self) -> int:
        """The first byte behind it."""
        return self.offset + int(np.prod(self.shape))


class SharedImages:
    """The writing side; owns the memory. descriptor: what a child process inherits."""

    def __init__(self) -> None:
        """Raises RunnerError: no descriptor or memory is left."""
        self.descriptor = -1
        self.descriptor = _unnamed_file()
        self._map = _Mapping(self.descriptor)
        self._capacity = 0
        self._grow(HEADER_BYTES)

    def write(self, images: Mapping[str, RGBImage]) -> list[PlacedImage]:
        """Put a frame's images [H, W, 3] in place of the last frame's. Raises DataError: no image; RunnerError: no memory."""
        placed, offset = [], HEADER_BYTES
        for camera, image in images.items():
            place = PlacedImage(camera, offset, check_image(image, camera).shape)
            offset = -(-place.end // ALIGNMENT_BYTES) * ALIGNMENT_BYTES
            placed.append(place)
        self._grow(offset)
        for place in placed:
            self._map.image(place)[:] = images[place.camera]
        return placed

    def cancel(self, frame: int) -> None:
        """Tell the reading side that nobody waits for this frame and earlier ones."""
        self._map.word()[0] = frame

    def close(self) -> None:
        """Give the descriptor back; the memory goes when no process maps it. A second call does nothing."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor, self._map = -1, _Mapping(-1)

    def __del__(self) -> None:
        self.close()

    def _grow(self, num_bytes: int) -> None:
        if num_bytes <= self._capacity:
            return
        try:
            _reserve(self.descriptor, num_bytes)
        except OSError as error:
            raise RunnerError(f"no {num_bytes / 1e6:.0f} MB of shared memory for a frame's images: {error.strerror}") from error
        self._capacity = num_bytes


class SharedImageReader:
    """The reading side, on an inherited descriptor."""

    def __init__(self, descriptor: int) -> None:
        self._map = _Mapping(descriptor)

    def read(self, placed: Sequence[PlacedImage]) -> dict[str, RGBImage]:
        """Images [H, W, 3] by camera, in order: read-only views, which the next frame overwrites."""
        images = {place.camera: self._map.image(place) for place in placed}
        for image in images.values():
            image.flags.writeable = False
        return images

    def cancelled(self, frame: int) -> bool:
        """Whether nobody waits for this frame any more."""
        return int(self._map.word()[0]) >= frame


class _Mapping:
    """A file mapped into memory, mapped anew when it has grown. Views of an older mapping stay valid."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._bytes: NDArray[np.uint8] = np.empty(0, np.uint8)

    def image(self, place: PlacedImage) -> RGBImage:
        return self._upto(place.end)[place.offset : place.end].reshape(place.shape)

    def word(self) -> NDArray[np.uint64]:
        return self._upto(HEADER_BYTES)[:8].view(np.uint64)

    def _upto(self, end: int) -> NDArray[np.uint8]:
        if end > len(self._bytes):
            self._bytes = np.frombuffer(mmap.mmap(self._descriptor, 0), np.uint8)
            assert end <= len(self._bytes), "an image beyond the shared memory"
        return self._bytes


def _unnamed_file() -> int:
    try:
        if sys.platform == "linux":
            return os.memfd_create("drivekd-images", os.MFD_CLOEXEC)
        with tempfile.TemporaryFile() as file:  # its name is gone already, it goes with its last descriptor
            return os.dup(file.fileno())
    except OSError as error:
        raise RunnerError(f"no shared memory for images: {error.strerror}") from error


def _reserve(descriptor: int, num_bytes: int) -> None:
    if sys.platform == "linux":  # with pages behind it: where there is no memory, writing would end in SIGBUS
        os.posix_fallocate(descriptor, 0, num_bytes)
    else:
        os.ftruncate(descriptor, num_bytes)
