"""MotionBlur and ZoomBlur against slower, obvious versions of their definitions."""

from __future__ import annotations

import numpy as np
import pytest

from drivekd.evaluate.corruptions.blur import zoom_blur
from drivekd.evaluate.corruptions.draws import generator
from drivekd.evaluate.corruptions.shifts import smeared


@pytest.mark.parametrize("angle", [0.0, 30.0, -45.0, 90.0, -135.0])
def test_smearing_is_a_sum_of_shifted_copies(angle: float) -> None:
    rng = np.random.default_rng(0)
    image = rng.random((70, 50, 2)).astype(np.float32)  # more rows than are summed at a time
    radius, sigma = 4, 3.0
    weights = np.exp(-0.5 * (np.arange(2 * radius + 1) / sigma) ** 2)
    expected = np.zeros_like(image)
    for index, weight in enumerate(weights / weights.sum()):
        dy = int(np.ceil(index * np.sin(np.radians(angle)) - 0.5))
        dx = int(np.ceil(index * np.cos(np.radians(angle)) - 0.5))
        rows, columns = np.clip(np.arange(70) + dy, 0, 69), np.clip(np.arange(50) + dx, 0, 49)
        expected += weight * image[rows][:, columns]
    np.testing.assert_allclose(smeared(image, radius, sigma, angle), expected, atol=1e-5)  # fp32 sums of nine


def test_what_is_flat_stays_flat() -> None:
    flat = np.full((20, 30, 3), 77, np.uint8)
    assert np.array_equal(zoom_blur(flat, 5, generator(0)), flat)
    np.testing.assert_allclose(smeared(flat.astype(np.float32), 9, 4, 20), 77, atol=1e-3)


def test_zooming_keeps_the_middle_and_moves_the_border_outwards() -> None:
    image = np.zeros((90, 160, 3), np.uint8)
    image[44:46, 79:81] = 255
    image[:, 40:44] = 255  # 38 px left of the middle: enlarged by up to 1.25, up to 48 px left
    made = zoom_blur(image, 4, generator(0)).astype(int)
    assert made[44:46, 79:81].min() > 200
    row = made[20, :, 0]
    assert row[45:].max() == 0
    assert row[33:40].min() > 0
    assert row[:28].max() == 0
