"""Cameras that deliver nothing: CameraCrash, FrameLost, NoImage. Their pictures are black."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from drivekd.images import RGBImage


def black(image: RGBImage) -> RGBImage:
    """What a camera that delivers nothing gives."""
    return np.zeros_like(image)


def crashed(cameras: Sequence[str], severity: int, rng: np.random.Generator) -> set[str]:
    """`severity` cameras, drawn with replacement: one may be drawn twice, so at most that many crash (DriveBench)."""
    return {cameras[index] for index in rng.integers(len(cameras), size=5)[:severity]}


def is_lost(severity: int, rng: np.random.Generator) -> bool:
    """Each camera loses its frame with probability severity / 6, by itself (DriveBench)."""
    return bool(rng.random() < severity / 6)
