"""Brightness, LowLight, Saturate. Each takes uint8 RGB [H, W, 3] and gives the same; V and S are those of HSV.

Brightness and Saturate: Hendrycks & Dietterich (2019), with DriveBench's severities.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from drivekd.images import RGBImage

from .draws import to_levels

_BRIGHTER = (0.1, 0.2, 0.3, 0.4, 0.5)  # added to V, of 0..1
_SATURATION = ((0.3, 0.0), (0.1, 0.0), (2.0, 0.0), (5.0, 0.1), (20.0, 0.2))  # S is multiplied by the first; the second is added
_BRIGHTEST = (0.5, 0.4, 0.3, 0.2, 0.1)  # the brightest value that low light leaves, of 0..1
_PHOTONS = (250, 120, 50, 30, 20)  # that the value 1 stands for
_READ_NOISE = (0.012, 0.018, 0.026, 0.038, 0.05)  # standard deviation, of 0..1
_QUANTILES = 4096


def brightness(image: RGBImage, severity: int, rng: np.random.Generator) -> RGBImage:
    """V + c, hue and saturation kept; what would be brighter than white stays white's V."""
    value = image.max(axis=2).astype(np.int64)  # [H, W]
    levels = np.arange(256) / 255
    brighter = np.minimum(levels + _BRIGHTER[severity - 1], 1)
    factor = (brighter / np.maximum(levels, 1 / 255)).astype(np.float32)  # [256], by V
    lit = image * factor[value][..., None]
    lit[value == 0] = 255 * _BRIGHTER[severity - 1]  # black has no hue: it becomes grey
    return to_levels(lit)


def saturate(image: RGBImage, severity: int, rng: np.random.Generator) -> RGBImage:
    """S * a + b, hue and V kept. A grey has hue 0 in HSV, which is red's: with b it becomes reddish, as published."""
    factor, more = _SATURATION[severity - 1]
    value = image.max(axis=2, keepdims=True).astype(np.float32)  # [H, W, 1]
    distance = value - image  # [H, W, 3], largest: S * V
    spread = distance.max(axis=2, keepdims=True)
    saturation = spread / np.maximum(value, 1)
    wanted = np.minimum(saturation * factor + more, 1)
    coloured = value - distance * (wanted * value / np.maximum(spread, 1))
    grey = spread[..., 0] == 0
    if more:
        coloured[grey, 1:] = (value * (1 - more))[grey]
    return to_levels(coloured)


def low_light(image: RGBImage, severity: int, rng: np.random.Generator) -> RGBImage:
    """Gamma 2 into the range 0..c, then few photons (Poisson) and the noise of reading them (Gauss), as DriveBench darkens.

    DriveBench's own tables are read one place too far, so its severity 4, the one it publishes, is its list's fifth entry (c 0.2,
    30 photons); these lists are the ones that it then uses, and go on by one.
    """
    low, high = int(image.min()), int(image.max())
    levels = (np.arange(256) - low) / max(high - low, 1)
    dark = levels.clip(0, 1) ** 2 * _BRIGHTEST[severity - 1]  # [256], 0..1
    quantiles = _noisy_quantiles(dark, _PHOTONS[severity - 1], _READ_NOISE[severity - 1])
    draws = rng.integers(_QUANTILES, size=image.shape, dtype=np.uint16)
    noisy: RGBImage = quantiles.reshape(-1)[image.astype(np.int32) * _QUANTILES + draws]
    return noisy


def _noisy_quantiles(light: NDArray[np.float64], photons: int, read_noise: float) -> NDArray[np.uint8]:
    """uint8 [len(light), quantiles]: what light of 0..1 is measured as, from the least to the most that noise makes of it.

    A table in place of a draw a pixel: a picture has only 256 values, and Poisson draws are slow.
    """
    expected = np.maximum(light * photons, 1e-12)  # photons
    most = int(expected.max() + 8 * math.sqrt(expected.max()) + 8)
    counts = np.arange(most + 1)
    log_factorial = np.cumsum(np.log(np.maximum(counts, 1)))
    chance = np.exp(counts * np.log(expected)[:, None] - expected[:, None] - log_factorial)  # [levels, counts], Poisson
    steps = np.arange(255) + 1  # a value below step / 255 is measured as less than `step`: fractions are cut off, as published
    apart = (steps / 255 - np.minimum(counts / photons, 1)[:, None]) / (read_noise * math.sqrt(2))
    below = 0.5 * (1 + np.vectorize(math.erf)(apart))  # [counts, steps], Gauss
    share = np.einsum("lc,cs->ls", chance, below, optimize=False)  # no BLAS: its rounding depends on the number of threads
    places = (np.arange(_QUANTILES) + 0.5) / _QUANTILES
    return np.stack([np.searchsorted(row, places) for row in share]).astype(np.uint8)
