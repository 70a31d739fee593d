"""Brightness, LowLight and Saturate against slower, obvious versions of their definitions."""

from __future__ import annotations

import colorsys

import numpy as np
import pytest

from drivekd.evaluate.corruptions.draws import generator
from drivekd.evaluate.corruptions.light import brightness, low_light, saturate
from drivekd.images import RGBImage


def colours() -> RGBImage:
    """Random ones, and the corners: black, white, greys, pure colours."""
    rng = np.random.default_rng(0)
    corners = [(0, 0, 0), (255, 255, 255), (7, 7, 7), (128, 128, 128), (255, 0, 0), (0, 0, 9), (200, 200, 0)]
    return np.concatenate([np.array(corners), rng.integers(0, 256, (300, 3))]).astype(np.uint8)[None]


@pytest.mark.parametrize("severity", [1, 2, 3, 4, 5])
def test_brightness_is_added_to_the_value_of_hsv(severity: int) -> None:
    made = brightness(colours(), severity, generator(0))
    for before, after in zip(colours()[0] / 255, made[0], strict=True):
        hue, saturation, value = colorsys.rgb_to_hsv(*before)
        expected = 255 * np.array(colorsys.hsv_to_rgb(hue, saturation, min(value + severity / 10, 1)))
        np.testing.assert_allclose(after, expected, atol=0.51)  # rounded to a level


@pytest.mark.parametrize(("severity", "factor", "more"), [(1, 0.3, 0), (2, 0.1, 0), (3, 2, 0), (4, 5, 0.1), (5, 20, 0.2)])
def test_saturate_scales_the_saturation_of_hsv(severity: int, factor: float, more: float) -> None:
    made = saturate(colours(), severity, generator(0))
    for before, after in zip(colours()[0] / 255, made[0], strict=True):
        hue, saturation, value = colorsys.rgb_to_hsv(*before)
        expected = 255 * np.array(colorsys.hsv_to_rgb(hue, min(saturation * factor + more, 1), value))
        np.testing.assert_allclose(after, expected, atol=0.51)  # rounded to a level


@pytest.mark.parametrize(
    ("severity", "brightest", "photons", "noise"),
    [(1, 0.5, 250, 0.012), (3, 0.3, 50, 0.026), (4, 0.2, 30, 0.038), (5, 0.1, 20, 0.05)],
)
def test_low_light_is_few_photons_and_the_noise_of_reading_them(
    severity: int, brightest: float, photons: int, noise: float
) -> None:
    """The table of quantiles against a draw a pixel: mean, spread and tails at every brightness."""
    levels = np.array([0, 60, 128, 200, 255], np.uint8)
    image = np.repeat(levels, 60_000 // 3).reshape(5, -1, 1).repeat(3, axis=2)  # [5, 20000, 3]
    made = low_light(image, severity, generator(1)).reshape(5, -1)
    rng = np.random.default_rng(0)
    for level, found in zip(levels, made, strict=True):
        light = (level / 255) ** 2 * brightest
        measured = np.clip(rng.poisson(light * photons, 60_000) / photons, 0, 1) + rng.normal(0, noise, 60_000)
        drawn = (measured.clip(0, 1) * 255).astype(np.uint8)
        # five standard errors of a mean of 60,000, twice, for two samples; and as much for the spread
        error = 5 * drawn.std() * np.sqrt(2 / 60_000) + 0.02
        assert abs(found.mean() - drawn.mean()) < error
        assert abs(found.std() - drawn.std()) < error
        quantiles = [1, 10, 50, 90, 99]
        # 2 levels, and photons come in steps: of 255 / photons levels each
        np.testing.assert_allclose(np.percentile(found, quantiles), np.percentile(drawn, quantiles), atol=2)


def test_neighbours_in_the_dark_are_not_alike() -> None:
    made = low_light(np.full((60, 80, 3), 255, np.uint8) - np.eye(60, 80, dtype=np.uint8)[..., None] * 255, 4, generator(0))
    noise = made.astype(float) - made.mean()
    assert abs((noise[:, 1:] * noise[:, :-1]).mean()) < 0.1 * noise.var()
    assert abs((noise[..., 0] * noise[..., 1]).mean()) < 0.25 * noise.var()
