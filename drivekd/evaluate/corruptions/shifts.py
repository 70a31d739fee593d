"""A picture smeared along a line, as motion does: weighted sums of shifted copies."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

_ROWS = 32  # rows at a time: what is added up then stays in the processor's cache

Planes = NDArray[np.float32]  # [H, W, channels]


def smeared(image: Planes, radius_px: float, sigma_px: float, angle_degrees: float) -> Planes:
    """Sum over i of w(i) * image shifted by i px along the angle, i = 0 .. 2 radius, w half a Gauss curve of `sigma_px`.

    ImageMagick's motion blur, by which Hendrycks & Dietterich define theirs; beyond the border the border goes on.
    """
    length = 2 * max(round(radius_px), 1) + 1
    weights = np.exp(-0.5 * (np.arange(length) / sigma_px) ** 2).astype(np.float32)
    weights /= weights.sum()
    angle = math.radians(angle_degrees)
    down = [math.ceil(i * math.sin(angle) - 0.5) for i in range(length)]
    right = [math.ceil(i * math.cos(angle) - 0.5) for i in range(length)]
    margin = length + 1
    padded = np.pad(image, ((margin, margin), (margin, margin), (0, 0)), mode="edge")
    height, width = image.shape[:2]
    result = np.zeros_like(image)
    for top in range(0, height, _ROWS):
        rows = min(_ROWS, height - top)
        part = result[top : top + rows]
        product = np.empty_like(part)
        for weight, dy, dx in zip(weights, down, right, strict=True):
            y, x = margin + top + dy, margin + dx
            np.multiply(padded[y : y + rows, x : x + width], weight, out=product)
            part += product
    return result
