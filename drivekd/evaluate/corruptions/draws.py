"""What the corruptions share: random numbers that depend on what they are for alone, lengths that go with the picture, levels."""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

from drivekd.images import RGBImage

REFERENCE_WIDTH_PX = 1600  # of the pictures that lengths in pixels are given for


def frame_seed(seed: int, frame_name: str) -> int:
    """The seed of one frame of a run: the same frame is corrupted the same way by whoever asks, whichever cameras are shown."""
    return int.from_bytes(hashlib.sha256(f"{seed}\n{frame_name}".encode()).digest()[:8], "big")


def generator(seed: int, *purpose: str) -> np.random.Generator:
    """A stream of its own for each seed and purpose, such as a setting and a camera."""
    digest = hashlib.sha256("\n".join((str(seed), *purpose)).encode()).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(digest[:16], "big")))


def scale_of(width_px: int) -> float:
    """What a length in pixels of a picture 1600 px wide is multiplied by."""
    return width_px / REFERENCE_WIDTH_PX


def to_levels(values: NDArray[np.float32]) -> RGBImage:
    """Floats of any range as uint8: rounded to the nearest of 0..255. `values` may be overwritten."""
    np.rint(values, out=values)
    np.clip(values, 0, 255, out=values)
    return values.astype(np.uint8)
