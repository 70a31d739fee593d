"""Fog, Rain and Snow: what their definitions say can be counted."""

from __future__ import annotations

import numpy as np
import pytest

from drivekd.evaluate.corruptions.draws import generator
from drivekd.evaluate.corruptions.weather import fog, plasma, rain, snow


def test_clouds_fill_the_range_and_join_at_their_borders() -> None:
    clouds = plasma(2.0, generator(0))
    assert (clouds.min(), clouds.max()) == (0, 1)
    assert 0.25 < clouds.mean() < 0.75
    inside = np.abs(np.diff(clouds, axis=0)).mean()
    assert np.abs(clouds[0] - clouds[-1]).mean() < 4 * inside, "a torus: no seam"
    rough, smooth = (np.abs(np.diff(plasma(decay, generator(0)), axis=1)).mean() for decay in (1.4, 2.0))
    assert rough > 1.5 * smooth


def test_fog_leaves_the_brightest_as_bright_as_it_was() -> None:
    image = np.full((90, 160, 3), 120, np.uint8)
    image[0, 0] = 200
    for severity in range(1, 6):
        assert fog(image, severity, generator(severity)).max() <= 200


@pytest.mark.parametrize(("severity", "px_a_drop", "length"), [(1, 770, 10), (3, 770, 60), (5, 400, 80)])
def test_rain_has_its_number_of_strokes(severity: int, px_a_drop: int, length: int) -> None:
    image = np.zeros((900, 1600, 3), np.uint8)
    image[:, 800:] = 40  # darker than the mean, and lighter: contrast falls
    made = rain(image, severity, generator(3))
    dry = np.median(made[:, :800], axis=(0, 1))
    wet = (made[:, :800] > dry + 12).all(axis=2).mean()
    share = length / px_a_drop
    expected = 1 - np.exp(-share)  # strokes that fall anywhere hide one another
    assert abs(wet - expected) < 0.15 * expected


def test_snow_is_brighter_everywhere_and_falls() -> None:
    image = np.full((450, 800, 3), 90, np.uint8)
    steps = []
    for seed in range(6):
        made = snow(image, 3, generator(seed)).astype(float).mean(axis=2)
        assert made.min() >= 89
        steps.append([np.abs(np.diff(made, axis=axis)).mean() for axis in (0, 1)])
    downwards, sideways = np.mean(steps, axis=0)
    assert sideways > 1.05 * downwards, "smeared along lines within 45 degrees of upright"


def test_a_small_picture_has_as_much_weather_as_a_large_one() -> None:
    large, small = (np.full(shape, 60, np.uint8) for shape in ((900, 1600, 3), (252, 448, 3)))
    for corrupt in (rain, snow):
        brighter = [corrupt(image, 5, generator(1)).mean() - 60 for image in (large, small)]
        assert 0.6 < brighter[1] / brighter[0] < 1.6, corrupt.__name__
