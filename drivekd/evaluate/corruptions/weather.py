"""Fog, Rain, Snow. Each takes uint8 RGB [H, W, 3] and gives the same.

Fog and Snow: Hendrycks & Dietterich (2019); Rain: DriveBench.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from drivekd.images import RGBImage

from .draws import scale_of, to_levels
from .shifts import smeared

_FOG = ((1.5, 2.0), (2.0, 2.0), (2.5, 1.7), (2.5, 1.5), (3.0, 1.4))  # how thick, of 0..1; how fast finer clouds fade
_CLOUDS_PX = 256  # side of the square that clouds are made in; finer ones would be weaker than a grey level

# centre and spread of the flakes' brightness, their size, the least that is seen, smear (radius, sigma), share of the old colour
_SNOW = (
    (0.1, 0.3, 3.0, 0.5, 10, 4, 0.8),
    (0.2, 0.3, 2.0, 0.5, 12, 4, 0.7),
    (0.55, 0.3, 4.0, 0.9, 12, 8, 0.7),
    (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65),
    (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55),
)

_PX_A_DROP = (770, 770, 770, 500, 400)
_DROP_LENGTH_PX = (10, 30, 60, 60, 80)
_CONTRAST = (0.8, 0.8, 0.7, 0.6, 0.5)  # that rain leaves
_DROP_GREY = 220
_MOST_SLANT_PX = 10


def fog(image: RGBImage, severity: int, rng: np.random.Generator) -> RGBImage:
    """Clouds of a plasma fractal are added; the brightest stays as bright as it was."""
    thickness, decay = _FOG[severity - 1]
    height, width = image.shape[:2]
    clouds = Image.fromarray(plasma(decay, rng))  # float32, 0..1
    side = max(height, width)
    box = (0, 0, _CLOUDS_PX * width / side, _CLOUDS_PX * height / side)
    layer = np.asarray(clouds.resize((width, height), Image.Resampling.BICUBIC, box=box)) * np.float32(255 * thickness)
    brightest = float(image.max()) or 255.0
    foggy = (image + layer[..., None]) * np.float32(brightest / (brightest + 255 * thickness))
    return to_levels(foggy)


def plasma(decay: float, rng: np.random.Generator) -> NDArray[np.float32]:
    """A cloudy square, 0..1, by the diamond-square algorithm (Fournier, Fussell & Carpenter 1982) on a torus.

    decay: by how much the chance grows smaller with each halving.
    """
    size, step, chance = _CLOUDS_PX, _CLOUDS_PX, 1.0
    heights = np.zeros((size, size))
    while step >= 2:
        half = step // 2
        corners = heights[::step, ::step]
        below, right = np.roll(corners, -1, 0), np.roll(corners, -1, 1)
        middles = (corners + below + right + np.roll(below, -1, 1)) / 4 + chance * rng.uniform(-1, 1, corners.shape)
        heights[half::step, half::step] = middles
        level = (corners + right + middles + np.roll(middles, 1, 0)) / 4
        heights[::step, half::step] = level + chance * rng.uniform(-1, 1, corners.shape)
        upright = (corners + below + middles + np.roll(middles, 1, 1)) / 4
        heights[half::step, ::step] = upright + chance * rng.uniform(-1, 1, corners.shape)
        step, chance = half, chance / decay
    heights -= heights.min()
    clouds: NDArray[np.float32] = (heights / heights.max()).astype(np.float32)
    return clouds


def snow(image: RGBImage, severity: int, rng: np.random.Generator) -> RGBImage:
    """Flakes that fall, twice (once upside down), over a picture that has become paler."""
    centre, spread, size, least, radius, sigma, colour = _SNOW[severity - 1]
    height, width = image.shape[:2]
    scale = scale_of(width)
    flake_px = max(size * scale, 1.0)
    noise_shape = (math.ceil(height / flake_px), math.ceil(width / flake_px))
    noise = Image.fromarray(rng.normal(centre, spread, noise_shape).astype(np.float32))
    flakes = np.array(noise.resize((width, height), Image.Resampling.BILINEAR))
    flakes[flakes < least] = 0
    falling = smeared(flakes.clip(0, 1)[..., None], radius * scale, max(sigma * scale, 0.5), rng.uniform(-135, -45))  # [H, W, 1]
    grey = np.asarray(Image.fromarray(image).convert("L"), np.float32)
    pale = np.maximum(image, grey[..., None] * np.float32(1.5) + np.float32(127.5))
    snowy = colour * image + (1 - colour) * pale + 255 * (falling + falling[::-1, ::-1])
    return to_levels(snowy)


def rain(image: RGBImage, severity: int, rng: np.random.Generator) -> RGBImage:
    """Grey strokes, all slanted alike, over a picture with less contrast."""
    strokes = _strokes(image.shape[0], image.shape[1], severity, rng)[..., None] / np.float32(255)  # [H, W, 1], 0..1
    picture = image.astype(np.float32)
    lit = picture + strokes * (255 - picture) * np.float32(1 - picture.mean() / 255)
    soft = np.asarray(Image.fromarray(lit.clip(0, 255).astype(np.uint8)).filter(ImageFilter.BoxBlur(1)))  # 3x3
    thickness = min(scale_of(image.shape[1]), 1.0)  # a stroke thinner than a pixel is as much weaker
    wet = picture + (soft - picture) * strokes * np.float32(thickness)
    mean = wet.mean(axis=(0, 1), keepdims=True)
    return to_levels((wet - mean) * np.float32(_CONTRAST[severity - 1]) + mean)


def _strokes(height: int, width: int, severity: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """[H, W], the grey of a stroke or 0; each is one pixel wide."""
    scale = scale_of(width)
    length = max(round(_DROP_LENGTH_PX[severity - 1] * scale), 2)
    slant = rng.uniform(-_MOST_SLANT_PX, _MOST_SLANT_PX) * scale
    most = math.ceil(height * width / scale**2 / min(_PX_A_DROP))
    starts = rng.random((most, 2))[: math.ceil(height * width / scale**2 / _PX_A_DROP[severity - 1])]
    steps = np.arange(length)
    rows = (starts[:, :1] * max(height - length, 1)).astype(np.int64) + steps  # [drops, length]
    columns = (starts[:, 1:] * (width + abs(slant)) - max(slant, 0) + slant * steps / length).astype(np.int64)
    seen = (rows < height) & (columns >= 0) & (columns < width)
    mask = np.zeros((height, width), np.float32)
    mask[rows[seen], columns[seen]] = _DROP_GREY
    return mask
