"""MotionBlur, ZoomBlur, as Hendrycks & Dietterich (2019) define them. Each takes uint8 RGB [H, W, 3] and gives the same."""

from __future__ import annotations

import numpy as np
from PIL import Image

from drivekd.images import RGBImage

from .draws import scale_of, to_levels
from .shifts import smeared

_MOTION_PX = ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15))  # radius, sigma
_ZOOMS = (  # the largest zoom, and the step to it from 1
    (1.11, 0.01),
    (1.16, 0.01),
    (1.21, 0.02),
    (1.26, 0.02),
    (1.31, 0.03),
)


def motion_blur(image: RGBImage, severity: int, rng: np.random.Generator) -> RGBImage:
    """Smeared along a line that is at most 45 degrees from level."""
    radius, sigma = _MOTION_PX[severity - 1]
    scale = scale_of(image.shape[1])
    blurred = smeared(image.astype(np.float32), radius * scale, max(sigma * scale, 0.5), rng.uniform(-45, 45))
    return to_levels(blurred)


def zoom_blur(image: RGBImage, severity: int, rng: np.random.Generator) -> RGBImage:
    """The mean of the picture and of its middle, enlarged step by step: driving fast with a slow shutter."""
    largest, step = _ZOOMS[severity - 1]
    height, width = image.shape[:2]
    picture = Image.fromarray(image)
    factors = np.arange(1, largest, step)
    total = image.astype(np.uint16)
    for factor in factors:
        left, top = width * (1 - 1 / factor) / 2, height * (1 - 1 / factor) / 2
        box = (left, top, width - left, height - top)
        total += np.asarray(picture.resize((width, height), Image.Resampling.BILINEAR, box=box))
    count = len(factors) + 1
    return ((total + count // 2) // count).astype(np.uint8)
