"""Six pinhole cameras with nuScenes names, about where nuScenes has them; level, without lens distortion."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from drivekd.errors import UsageError
from drivekd.sample import CAMERAS
from drivekd.world.scene.road import Floats

NEAR_M = 0.25
HORIZON = 0.56  # share of the height above the horizon: signals hang high, the ego bonnet is of no use

_MOUNTS: dict[str, tuple[float, float, tuple[float, float, float]]] = {  # yaw and field of view in degrees, x y z in metres
    "CAM_FRONT": (0.0, 70.0, (0.0, 0.0, 1.6)),
    "CAM_FRONT_LEFT": (55.0, 70.0, (-0.1, 0.5, 1.6)),
    "CAM_FRONT_RIGHT": (-55.0, 70.0, (-0.1, -0.5, 1.6)),
    "CAM_BACK": (180.0, 110.0, (-2.6, 0.0, 1.6)),
    "CAM_BACK_LEFT": (110.0, 70.0, (-0.6, 0.5, 1.6)),
    "CAM_BACK_RIGHT": (-110.0, 70.0, (-0.6, -0.5, 1.6)),
}


@dataclass(frozen=True)
class Camera:
    """A pinhole at `position_m` (world x, y, z), looking along `yaw_rad`, with square pixels."""

    name: str
    yaw_rad: float
    field_of_view_rad: float
    position_m: tuple[float, float, float]
    width_px: int
    height_px: int

    @property
    def focal_px(self) -> float:
        """Focal length: half the width over the tangent of half the horizontal field of view."""
        return self.width_px / 2.0 / math.tan(self.field_of_view_rad / 2.0)

    @property
    def center_px(self) -> tuple[float, float]:
        """(x, y) of the optical axis, from the left and from the top. y is the horizon."""
        return self.width_px / 2.0, self.height_px * HORIZON

    def to_camera(self, points_m: Floats) -> Floats:
        """World points [..., 3] as right, down, forward [..., 3] in metres."""
        x_m, y_m, z_m = (points_m[..., axis] - self.position_m[axis] for axis in range(3))
        cos, sin = math.cos(self.yaw_rad), math.sin(self.yaw_rad)
        return np.stack([x_m * sin - y_m * cos, -z_m, x_m * cos + y_m * sin], axis=-1)

    def to_pixels(self, camera_points_m: Floats) -> Floats:
        """Camera points [..., 3], forward > 0, as pixel x, y [..., 2]."""
        center_x, center_y = self.center_px
        scale = self.focal_px / camera_points_m[..., 2]
        x_px, y_px = center_x + camera_points_m[..., 0] * scale, center_y + camera_points_m[..., 1] * scale
        return np.stack([x_px, y_px], axis=-1)


@lru_cache(maxsize=64)
def make_camera(name: str, size_px: tuple[int, int]) -> Camera:
    """The camera `name` with pictures of size_px (width, height)."""
    if name not in _MOUNTS:
        raise UsageError(f"camera {name!r} is unknown; the world has {', '.join(CAMERAS)}.")
    yaw_deg, view_deg, position_m = _MOUNTS[name]
    return Camera(name, math.radians(yaw_deg), math.radians(view_deg), position_m, *size_px)


def clip_near(camera_points_m: Floats) -> Floats:
    """The part of a polygon [V, 3] (camera frame) beyond the near plane: [V', 3], V' = 0 when none is left."""
    kept: list[Floats] = []
    previous = camera_points_m[-1]
    for point in camera_points_m:
        if (previous[2] > NEAR_M) != (point[2] > NEAR_M):
            kept.append(previous + (NEAR_M - previous[2]) / (point[2] - previous[2]) * (point - previous))
        if point[2] > NEAR_M:
            kept.append(point)
        previous = point
    return np.array(kept).reshape(-1, 3)
