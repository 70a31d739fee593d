"""Road surface per pixel: each pixel's ray meets the ground at a road point s, d, which decides the material.

Edges are anti-aliased analytically, so the ground needs no supersampling. Letters: h rows below the horizon, W columns.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from drivekd.world.scene.assembly import lamp_positions_m
from drivekd.world.scene.road import MEDIAN_WIDTH_M, SIDEWALK_WIDTH_M, Road
from drivekd.world.scene.scene import Scene

from .camera import Camera
from .light import Light
from .noise import TEXTURE_PX, Texture, cloudy_texture

CROSSWALK_LENGTH_M = 3.4
_STRIPE_M = 1.1
_DASH_M, _DASH_PERIOD_M = 3.2, 8.0
_MARK_WIDTH_M = 0.22  # half as wide again as real ones: they must survive 112 x 112 pixels
_MAX_DISTANCE_M = 3000.0

_ASPHALT, _WHITE, _YELLOW = (80, 81, 85), (228, 228, 222), (226, 182, 58)
_KERB, _PAVING, _GRASS = (178, 178, 174), (150, 144, 136), (92, 116, 66)


@dataclass(frozen=True)
class _Rays:
    """Ground points of a camera's pixels below the horizon, metres: x, y [h, W]; distance along the view [h, 1]."""

    x_m: Texture
    y_m: Texture
    distance_m: Texture
    across_m: Texture  # width of a pixel on the ground, [h, 1]
    along_m: Texture  # length of a pixel on the ground, [h, 1]


def first_ground_row(camera: Camera) -> int:
    """The first pixel row that shows ground."""
    return int(camera.center_px[1]) + 1


def paint_ground(scene: Scene, camera: Camera, light: Light, shadows: Texture) -> Texture:
    """[h, W, 3]. shadows: [h, W], 0 open .. 1 shaded."""
    rays = _rays(camera)
    surface = _surface(scene.road, rays)
    image = _materials(scene, surface)
    if scene.weather == "rain":  # wet: darker, and it mirrors the sky
        image = image * 0.68 + light.horizon.astype(np.float32) * np.float32(0.16 / max(light.ambient, 0.3))
    image *= (_brightness(scene, rays, light) * (1.0 - light.shadow * shadows))[..., None]
    fade = (1.0 - np.exp(-rays.distance_m / light.haze_length_m))[..., None]
    hazy: Texture = (image * (1.0 - fade) + light.horizon * fade).astype(np.float32)
    return hazy


@lru_cache(maxsize=32)
def _rays(camera: Camera) -> _Rays:
    center_x, center_y = camera.center_px
    rows = np.arange(first_ground_row(camera), camera.height_px)
    height_m = camera.position_m[2]
    forward_m = (height_m * camera.focal_px / (rows + 0.5 - center_y))[:, None]  # [h, 1]
    right_m = forward_m * ((np.arange(camera.width_px) + 0.5 - center_x) / camera.focal_px)  # [h, W]
    cos, sin = np.cos(camera.yaw_rad), np.sin(camera.yaw_rad)
    x_m = camera.position_m[0] + forward_m * cos + right_m * sin
    y_m = camera.position_m[1] + forward_m * sin - right_m * cos
    parts = (x_m, y_m, forward_m, forward_m / camera.focal_px, forward_m**2 / (camera.focal_px * height_m))
    clipped = (np.clip(part, -_MAX_DISTANCE_M, _MAX_DISTANCE_M).astype(np.float32) for part in parts)
    return _Rays(*clipped)


@dataclass(frozen=True)
class _Surface:
    """Road point of each pixel and how much road a pixel covers; [h, W] and [h, 1]."""

    s_m: Texture
    d_m: Texture
    grain: Texture
    rays: _Rays

    def band(self, center_m: float, width_m: float) -> Texture:
        """Share of each pixel inside a lengthwise band of the road."""
        inside = (width_m / 2.0 - np.abs(self.d_m - np.float32(center_m))) / self.rays.across_m + 0.5
        return _share(inside)

    def beyond(self, edge_m: float, side: float) -> Texture:
        """Share of each pixel further out than edge_m on `side` (1 left, -1 right)."""
        return _share(side * (self.d_m - np.float32(edge_m)) / self.rays.across_m + 0.5)

    def crossbar(self, center_m: float, length_m: float) -> Texture:
        """Share of each pixel inside a band across the road."""
        inside = (length_m / 2.0 - np.abs(self.s_m - np.float32(center_m))) / self.rays.along_m + 0.5
        return _share(inside)


def _share(value: Texture) -> Texture:
    share: Texture = np.clip(value, 0.0, 1.0)
    return share


def _surface(road: Road, rays: _Rays) -> _Surface:
    s_m, d_m = road.from_world(rays.x_m, rays.y_m)
    texture = cloudy_texture()
    fine = texture[(rays.x_m * 18).astype(np.intp) % TEXTURE_PX, (rays.y_m * 18).astype(np.intp) % TEXTURE_PX]
    coarse = texture[(rays.x_m * 2.1).astype(np.intp) % TEXTURE_PX, (rays.y_m * 2.1).astype(np.intp) % TEXTURE_PX]
    grain = fine * np.clip(1.2 - rays.distance_m / 40.0, 0.1, 1.0) + coarse * np.float32(0.8)
    return _Surface(s_m.astype(np.float32), d_m.astype(np.float32), grain, rays)


def _materials(scene: Scene, surface: _Surface) -> Texture:
    image = np.array(_ASPHALT, np.float32) + surface.grain[..., None] * np.float32(4.0)
    worn = np.clip(0.94 + surface.grain * np.float32(0.05), 0.0, 1.0)
    white, yellow = _lane_marks(scene.road, surface)
    if scene.crosswalk_m is not None:
        white = np.maximum(white, _crosswalk(scene.road, surface, scene.crosswalk_m))
    if scene.signal_m is not None and scene.crosswalk_m is None:
        white = np.maximum(white, _stop_line(scene.road, surface, scene.signal_m - 6.0))
    glass_beads = 1.7 if scene.daylight == "night" else 1.0  # marks throw head lights back
    _blend(image, white * worn, _WHITE, glass_beads)
    _blend(image, yellow * worn, _YELLOW, glass_beads)
    _verges(scene.road, surface, image)
    return image


def _blend(image: Texture, share: Texture, color: tuple[int, int, int], gain: float = 1.0) -> None:
    image += share[..., None] * (np.array(color, np.float32) * np.float32(gain) - image)


def _lane_marks(road: Road, surface: _Surface) -> tuple[Texture, Texture]:
    """White and yellow paint, [h, W] each, as shares."""
    dashes = _dashes(surface)
    white = surface.band(road.right_edge_m, _MARK_WIDTH_M)
    for lane in range(1, road.num_lanes):
        white = np.maximum(white, surface.band(road.left_edge_m - lane * road.lane_width_m, _MARK_WIDTH_M) * dashes)
    yellow = surface.band(road.left_edge_m, _MARK_WIDTH_M)
    if road.num_opposite_lanes:
        inner_m = road.left_edge_m + MEDIAN_WIDTH_M
        yellow = np.maximum(yellow, surface.band(inner_m, _MARK_WIDTH_M))
        for lane in range(1, road.num_opposite_lanes + 1):
            line = surface.band(inner_m + lane * road.lane_width_m, _MARK_WIDTH_M)
            white = np.maximum(white, line if lane == road.num_opposite_lanes else line * dashes)
    return white, yellow


def _dashes(surface: _Surface) -> Texture:
    phase = np.abs(np.mod(surface.s_m, _DASH_PERIOD_M) - _DASH_PERIOD_M / 2.0)
    sharp = np.clip((_DASH_M / 2.0 - phase) / surface.rays.along_m + 0.5, 0.0, 1.0)
    blurred = np.clip(surface.rays.along_m / 4.0 - 0.5, 0.0, 1.0)  # far dashes merge into a pale line
    dashes: Texture = sharp + blurred * (_DASH_M / _DASH_PERIOD_M - sharp)
    return dashes


def _crosswalk(road: Road, surface: _Surface, center_m: float) -> Texture:
    stripes = (np.mod(surface.d_m, _STRIPE_M) < _STRIPE_M * 0.55).astype(np.float32)
    zebra = surface.crossbar(center_m, CROSSWALK_LENGTH_M) * stripes
    stop_line = _stop_line(road, surface, center_m - CROSSWALK_LENGTH_M / 2.0 - 1.2)
    crosswalk: Texture = np.maximum(zebra, stop_line) * _on_road(road, surface)
    return crosswalk


def _stop_line(road: Road, surface: _Surface, s_m: float) -> Texture:
    own = surface.beyond(road.right_edge_m, 1.0) * surface.beyond(road.left_edge_m, -1.0)
    return surface.crossbar(s_m, 0.5) * own


def _on_road(road: Road, surface: _Surface) -> Texture:
    return surface.beyond(road.right_kerb_m, 1.0) * surface.beyond(road.left_kerb_m, -1.0)


def _verges(road: Road, surface: _Surface, image: Texture) -> None:
    """Median, kerbs, sidewalks, grass; in place."""
    if road.num_opposite_lanes:
        _blend(image, surface.band(road.left_edge_m + MEDIAN_WIDTH_M / 2.0, MEDIAN_WIDTH_M - 0.8), _KERB)
        _blend(image, surface.band(road.left_edge_m + MEDIAN_WIDTH_M / 2.0, MEDIAN_WIDTH_M - 1.2), _GRASS)
    joints = 1.0 - 0.2 * (np.mod(surface.s_m, 1.6) < np.maximum(0.06, surface.rays.along_m)) * (surface.rays.along_m < 0.5)
    for kerb_m, side in ((road.left_kerb_m, 1.0), (road.right_kerb_m, -1.0)):
        paving = surface.beyond(kerb_m, side)[..., None]
        color = np.array(_PAVING, np.float32) * joints[..., None].astype(np.float32) + surface.grain[..., None] * 4.0
        image += paving * (color - image)
        _blend(image, surface.band(kerb_m, 0.34), _KERB)
        grass = surface.beyond(kerb_m + side * SIDEWALK_WIDTH_M, side)[..., None]
        image += grass * (np.array(_GRASS, np.float32) + surface.grain[..., None] * 9.0 - image)


def _brightness(scene: Scene, rays: _Rays, light: Light) -> Texture:
    """Light on the ground, [h, W]: sun and sky, head lights, street lamps."""
    brightness = np.full(rays.x_m.shape, light.ambient + 0.78 * light.sun, np.float32)
    if light.head_lights > 0.0:
        brightness += light.head_lights * _head_light_pool(rays)
        for x_m, y_m, _ in lamp_positions_m(scene):
            if -20.0 < x_m < 60.0:
                distance2 = (rays.x_m - np.float32(x_m)) ** 2 + (rays.y_m - np.float32(y_m)) ** 2
                brightness += np.float32(0.7 * light.head_lights) * np.exp(distance2 / np.float32(-26.0))
    return brightness


def _head_light_pool(rays: _Rays) -> Texture:
    width = 2.2 + 0.14 * np.abs(rays.x_m)
    reach = np.clip(1.0 - np.abs(rays.x_m - 12.0) / 30.0, 0.0, 1.0) * (rays.x_m > 0.5)
    pool: Texture = np.exp(-((rays.y_m / width) ** 2)) * reach
    return pool
