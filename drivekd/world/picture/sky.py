"""Sky, clouds and a distant skyline, per pixel above the horizon."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from drivekd.world.scene.scene import Scene

from .camera import Camera
from .light import Light
from .noise import TEXTURE_PX, Texture, cloudy_texture


def paint_sky(scene: Scene, camera: Camera, light: Light, rows: int) -> Texture:
    """[rows, W, 3]: the picture's upper `rows` pixel rows."""
    up, azimuth = _directions(camera, rows)  # tangent of elevation [rows], radians [W]
    height = np.clip(up * 1.9, 0.0, 1.0)[:, None, None]
    image = light.horizon * (1.0 - height) + light.zenith * height + np.zeros((1, camera.width_px, 1))
    if scene.weather != "fog":
        clouds = _clouds(scene.seed, up, azimuth)
        cloud_color = light.horizon * 0.5 + (245.0 * min(1.0, light.ambient + light.sun)) * 0.5
        image += clouds * (cloud_color - image)
    if scene.daylight == "night" and scene.weather == "clear":
        image += _stars(scene.seed, rows, camera.width_px)
    _add_skyline(image, scene, light, up, azimuth)
    sky: Texture = image.astype(np.float32)
    return sky


@lru_cache(maxsize=32)
def _directions(camera: Camera, rows: int) -> tuple[Texture, Texture]:
    center_x, center_y = camera.center_px
    up = (center_y - np.arange(rows) - 0.5) / camera.focal_px
    azimuth = camera.yaw_rad - np.arctan((np.arange(camera.width_px) + 0.5 - center_x) / camera.focal_px)
    return up.astype(np.float32), azimuth.astype(np.float32)


def _clouds(seed: int, up: Texture, azimuth: Texture) -> Texture:
    rows = (np.clip(up, 0.0, 2.0) * 260.0).astype(np.intp) % TEXTURE_PX
    columns = (azimuth * 100.0 + seed * 37 % TEXTURE_PX).astype(np.intp) % TEXTURE_PX
    cover = np.clip(cloudy_texture()[rows[:, None], columns[None, :]] * 0.55, 0.0, 1.0)
    clouds: Texture = (cover * np.clip(up * 4.0, 0.0, 1.0)[:, None] * 0.6)[..., None]
    return clouds


def _stars(seed: int, rows: int, width_px: int) -> Texture:
    rng = np.random.default_rng((seed, 11))
    stars = np.zeros((rows, width_px, 1), np.float32)
    count = rows * width_px // 900
    stars[rng.integers(0, rows, count), rng.integers(0, width_px, count)] = rng.uniform(20, 120, (count, 1))
    return stars


def _add_skyline(image: Texture, scene: Scene, light: Light, up: Texture, azimuth: Texture) -> None:
    """Far roofs, nearly as pale as the haze; in place."""
    roofs = np.random.default_rng((scene.seed, 12)).uniform(0.02, 0.12, 180)
    profile = roofs[(azimuth * 180.0 / (2.0 * np.pi) * 3.0).astype(np.intp) % len(roofs)]
    share = 0.0 if scene.weather == "fog" else 0.3 if scene.weather == "clear" else 0.15
    covered = (up[:, None] < profile[None, :]) & (up[:, None] > 0.0)
    image[covered] = image[covered] * (1.0 - share) + light.zenith * 0.5 * share
