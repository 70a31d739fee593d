"""Fixed textures: asphalt and cloud noise, sensor noise. Made once a process from constant seeds."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt
from PIL import Image

Texture = npt.NDArray[np.float32]

TEXTURE_PX = 512
_GRAIN_MARGIN_PX = 64


@lru_cache(maxsize=1)
def cloudy_texture() -> Texture:
    """[512, 512] that wraps around, several octaves, mean 0, deviation 1."""
    rng = np.random.default_rng(7)
    total = np.zeros((TEXTURE_PX, TEXTURE_PX), np.float32)
    for cells in (4, 16, 64, 256):
        octave = np.pad(rng.random((cells, cells)).astype(np.float32), 2, mode="wrap")
        box = (2.0, 2.0, cells + 2.0, cells + 2.0)
        smooth = Image.fromarray(octave).resize((TEXTURE_PX, TEXTURE_PX), Image.Resampling.BICUBIC, box=box)
        total += np.asarray(smooth) / (1.0 + cells / 40.0)
    total -= total.mean()
    texture: Texture = total / total.std()
    return texture


@lru_cache(maxsize=4)
def _grain_sheet(width_px: int, height_px: int) -> Texture:
    shape = (height_px + _GRAIN_MARGIN_PX, width_px + _GRAIN_MARGIN_PX, 3)
    return np.random.default_rng(8).standard_normal(shape).astype(np.float32)


def sensor_grain(rng: np.random.Generator, width_px: int, height_px: int) -> Texture:
    """[H, W, 3] of deviation 1: a random window of one large sheet, twenty times faster than fresh numbers."""
    top, left = (int(value) for value in rng.integers(0, _GRAIN_MARGIN_PX, 2))
    return _grain_sheet(width_px, height_px)[top : top + height_px, left : left + width_px]


@lru_cache(maxsize=8)
def vignette(width_px: int, height_px: int) -> Texture:
    """[H, W, 1]: 1 in the middle, a little darker in the corners."""
    y, x = np.mgrid[-1 : 1 : height_px * 1j, -1 : 1 : width_px * 1j]
    shade: Texture = (1.0 - 0.12 * (x**2 + y**2))[..., None].astype(np.float32)
    return shade
