"""What is on the lens: water, and something that blurs a part of the view. Each takes uint8 RGB [H, W, 3] and gives the same.

As DriveBench defines them. Both hit the front camera and one to five others; see `cameras_hit`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from drivekd.images import RGBImage

from .draws import scale_of, to_levels

_DROPS = (10, 20, 30, 40, 50)
_DROP_RADIUS_PX = ((5, 15), (10, 20), (15, 25), (20, 30), (25, 35))  # least, most
_DROP_WHITE = 0.2  # share of white in a drop
_WATER_KERNEL_PX = (7, 15, 21, 31, 51)
_OBSTACLE_KERNEL_PX = (11, 21, 31, 51, 71)
_OBSTACLE_SIZE = (0.1, 0.2, 0.3, 0.4, 0.5)  # the ellipse's largest half axis, as a share of the picture's sides
_OBSTACLE_SPREAD = (0.3, 0.25, 0.2, 0.15, 0.1)  # standard deviation of its centre from the middle, as a share


def cameras_hit(cameras: Sequence[str], rng: np.random.Generator) -> set[str]:
    """The first camera always, and one to five of the others."""
    others = cameras[1:]
    count = min(int(rng.integers(1, 6)), len(others))
    return {cameras[0], *(others[index] for index in rng.permutation(len(others))[:count])}


def water_splash(image: RGBImage, severity: int, rng: np.random.Generator) -> RGBImage:
    """Round whitish drops, then all of it out of focus."""
    height, width = image.shape[:2]
    scale = scale_of(width)
    least, most = _DROP_RADIUS_PX[severity - 1]
    places = rng.random((_DROPS[-1], 3))[
        : _DROPS[severity - 1]
    ]  # x, y, radius, each 0..1; a worse splash has these drops and more
    splashed = image.astype(np.float32)
    for x, y, size in places:
        radius = max(scale * (least + size * (most - least)), 1.0)
        _whiten(splashed, radius + x * (width - 2 * radius), radius + y * (height - 2 * radius), radius)
    picture = Image.fromarray(to_levels(splashed))
    return np.asarray(_gaussian(picture, _WATER_KERNEL_PX[severity - 1], scale))


def _whiten(image: NDArray[np.float32], x: float, y: float, radius: float) -> None:
    """In place, a disc."""
    top, left = max(int(y - radius), 0), max(int(x - radius), 0)
    part = image[top : int(y + radius) + 2, left : int(x + radius) + 2]
    rows, columns = np.ogrid[top : top + part.shape[0], left : left + part.shape[1]]
    inside = (rows - y) ** 2 + (columns - x) ** 2 <= radius**2
    part[inside] += _DROP_WHITE * (255 - part[inside])


def lens_obstacle(image: RGBImage, severity: int, rng: np.random.Generator) -> RGBImage:
    """An ellipse near the middle, seen out of focus: dirt or a leaf close to the lens."""
    height, width = image.shape[:2]
    spread, largest = _OBSTACLE_SPREAD[severity - 1], _OBSTACLE_SIZE[severity - 1]
    across, down = rng.normal(size=2)
    sizes = rng.random(2)
    angle = rng.uniform(0, math.pi)
    x, y = np.clip((0.5 + spread * across, 0.5 + spread * down), 0, 1) * (width, height)
    half_width, half_height = (0.1 + sizes * (largest - 0.1)) * (width, height)
    rows, columns = np.ogrid[:height, :width]
    along = (columns - x) * math.cos(angle) + (rows - y) * math.sin(angle)
    beside = (rows - y) * math.cos(angle) - (columns - x) * math.sin(angle)
    inside = (along / half_width) ** 2 + (beside / half_height) ** 2 <= 1  # [H, W]
    blurred = np.asarray(_gaussian(Image.fromarray(image), _OBSTACLE_KERNEL_PX[severity - 1], scale_of(width)))
    return np.where(inside[..., None], blurred, image)


def _gaussian(picture: Image.Image, kernel_px: int, scale: float) -> Image.Image:
    """The Gauss blur that OpenCV takes for a kernel of this size: sigma = 0.3 ((k - 1) / 2 - 1) + 0.8."""
    sigma = 0.3 * ((kernel_px - 1) / 2 - 1) + 0.8
    return picture.filter(ImageFilter.GaussianBlur(sigma * scale))
