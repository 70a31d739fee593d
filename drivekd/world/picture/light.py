"""How bright things are: palettes by daylight, fog by weather, the shade of a face."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from drivekd.world.scene.mesh import Ints, Mesh
from drivekd.world.scene.road import Floats
from drivekd.world.scene.scene import Daylight, Scene, Weather

from .camera import Camera

_SUN = np.array([-0.48, 0.40, 0.78])  # from behind the ego, so that rears are lit
_HEAD_LIGHT_REACH_M = 45.0


@dataclass(frozen=True)
class Light:
    """ambient, sun: factors on a colour. zenith, horizon: sky colours. haze: what distance fades into."""

    ambient: float
    sun: float
    zenith: Floats
    horizon: Floats
    haze_length_m: float
    shadow: float
    head_lights: float


_AMBIENT: dict[Daylight, tuple[float, float, float]] = {
    "day": (0.66, 0.48, 0.0),
    "dusk": (0.50, 0.20, 0.15),
    "night": (0.34, 0.03, 0.75),
}
_SKY: dict[Daylight, tuple[tuple[int, int, int], tuple[int, int, int]]] = {
    "day": ((92, 148, 214), (206, 224, 238)),
    "dusk": ((62, 72, 122), (236, 168, 122)),
    "night": ((8, 11, 26), (34, 38, 58)),
}
_HAZE_LENGTH_M: dict[Weather, float] = {"clear": 380.0, "rain": 130.0, "fog": 52.0}
_SHADOW: dict[Daylight, float] = {"day": 0.55, "dusk": 0.4, "night": 0.45}


def scene_light(scene: Scene) -> Light:
    """The light of a scene: bad weather greys the sky, weakens sun and shadows."""
    ambient, sun, head_lights = _AMBIENT[scene.daylight]
    zenith, horizon = (np.array(color, float) for color in _SKY[scene.daylight])
    shadow = _SHADOW[scene.daylight]
    if scene.weather != "clear":
        grey = horizon.mean()
        zenith, horizon = 0.3 * zenith + 0.7 * (0.85 * grey), 0.45 * horizon + 0.55 * grey
        ambient, sun, shadow = ambient + 0.5 * sun, 0.1 * sun, 0.5 * shadow
    return Light(ambient, sun, zenith, horizon, _HAZE_LENGTH_M[scene.weather], shadow, head_lights)


def shaded_colors(mesh: Mesh, faces: Ints, camera: Camera, light: Light) -> Ints:
    """Colours [len(faces), 3], 0..255, after sun, head lights and haze."""
    to_face = mesh.vertices_m[mesh.starts[faces]] - np.array(camera.position_m)  # [F, 3]
    distance_m = np.linalg.norm(to_face, axis=1)
    sunny = np.maximum(0.0, mesh.normals[faces] @ _SUN)
    upright = np.where(mesh.two_sided[faces], 0.55, sunny)  # flat figures have no meaningful normal
    brightness = light.ambient + light.sun * upright + _head_light(to_face, distance_m, light)
    emission = mesh.emission[faces]
    lit = mesh.colors[faces] * np.maximum(brightness, emission)[:, None]
    fade = (1.0 - np.exp(-distance_m / light.haze_length_m)) * (1.0 - 0.85 * emission)
    mixed = lit * (1.0 - fade[:, None]) + light.horizon * fade[:, None]
    colors: Ints = np.clip(mixed, 0.0, 255.0).astype(np.intp)
    return colors


def _head_light(to_face_m: Floats, distance_m: Floats, light: Light) -> Floats:
    if light.head_lights == 0.0:
        return np.zeros(len(distance_m))
    ahead = np.clip(to_face_m[:, 0] / np.maximum(distance_m, 0.1), 0.0, 1.0) ** 4
    beam: Floats = light.head_lights * ahead * np.clip(1.0 - distance_m / _HEAD_LIGHT_REACH_M, 0.0, 1.0)
    return beam
