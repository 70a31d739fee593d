"""What happens between the scene and the file: glowing lamps, rain, vignette, sensor noise."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from drivekd.sample import CAMERAS
from drivekd.world.scene.assembly import SIGNAL_ID, lamp_positions_m, signal_bottom_m, signal_position_m
from drivekd.world.scene.road import Floats
from drivekd.world.scene.scene import Scene
from drivekd.world.scene.street import SIGNAL_LAMP_RADIUS_M, signal_lamp_height_m

from .camera import Camera
from .labels import IdBuffer
from .noise import Texture, sensor_grain, vignette

_GRAIN = {"day": 2.2, "dusk": 2.8, "night": 3.6}
_RAIN_BRIGHTNESS = {"day": 205.0, "dusk": 150.0, "night": 84.0}
_LAMP_COLORS: dict[str, tuple[int, int, int]] = {"red": (255, 36, 28), "green": (36, 255, 118)}


@dataclass(frozen=True)
class _Glow:
    """Light around a lamp: the picture is mixed with `color`, most at the lamp, e-fold at radius_m.

    shown_by: the id of what the lamp belongs to; where another id is in front, the lamp is hidden.
    """

    position_m: Floats  # [3]
    color: tuple[int, int, int]
    radius_m: float
    strength: float
    shown_by: int


def expose(image: Texture, scene: Scene, camera: Camera, ids: IdBuffer) -> Texture:
    """Glows, rain, vignette and noise on [H, W, 3], in place. ids: [H, W], what each pixel shows."""
    for glow in _lamp_post_glows(scene) + _signal_glows(scene):
        _add_glow(image, camera, ids, glow)
    rng = np.random.default_rng((scene.seed, 13, CAMERAS.index(camera.name)))
    if scene.weather == "rain":
        _add_rain(image, rng, _RAIN_BRIGHTNESS[scene.daylight])
    image *= vignette(camera.width_px, camera.height_px)
    image += sensor_grain(rng, camera.width_px, camera.height_px) * _GRAIN[scene.daylight]
    return image


def _lamp_post_glows(scene: Scene) -> list[_Glow]:
    if scene.daylight == "day":
        return []
    return [_Glow(point, (255, 226, 170), 0.45, 0.75, 0) for point in lamp_positions_m(scene)]


def _signal_glows(scene: Scene) -> list[_Glow]:
    """A tight glow that makes the lamp larger, and a wide one, stronger in the dark and in bad weather."""
    if scene.signal_m is None or scene.signal not in _LAMP_COLORS:
        return []
    point = signal_position_m(scene, signal_lamp_height_m(scene.signal, signal_bottom_m(scene.signal_m)))
    color = _LAMP_COLORS[scene.signal]
    wide = 0.28 if scene.daylight == "day" and scene.weather == "clear" else 0.38
    return [
        _Glow(point, color, 1.25 * SIGNAL_LAMP_RADIUS_M, 1.0, SIGNAL_ID),
        _Glow(point, color, 2.6 * SIGNAL_LAMP_RADIUS_M, wide, SIGNAL_ID),
    ]


def _project(camera: Camera, point_m: Floats) -> tuple[float, float, float] | None:
    """Pixel x, y and pixels per metre there; None behind the camera."""
    seen = camera.to_camera(point_m)
    if seen[2] < 1.0:
        return None
    x_px, y_px = camera.to_pixels(seen)
    return float(x_px), float(y_px), float(camera.focal_px / seen[2])


def _add_glow(image: Texture, camera: Camera, ids: IdBuffer, glow: _Glow) -> None:
    pixel = _project(camera, glow.position_m)
    if pixel is None:
        return
    x_px, y_px, px_per_m = pixel
    inside = 0.0 <= x_px < camera.width_px and 0.0 <= y_px < camera.height_px
    if not inside or ids[int(y_px), int(x_px)] != glow.shown_by:
        return
    radius_px = glow.radius_m * px_per_m
    reach = int(3.0 * radius_px) + 1
    left, top = max(0, int(x_px) - reach), max(0, int(y_px) - reach)
    window = image[top : int(y_px) + reach + 1, left : int(x_px) + reach + 1]
    rows = np.arange(top, top + window.shape[0])[:, None] + 0.5 - y_px
    columns = np.arange(left, left + window.shape[1])[None, :] + 0.5 - x_px
    share = glow.strength * np.exp(-(rows**2 + columns**2) / radius_px**2)[..., None]
    window += (share * (np.array(glow.color) - window)).astype(np.float32)


def _add_rain(image: Texture, rng: np.random.Generator, brightness: float) -> None:
    height_px, width_px = image.shape[:2]
    mask = Image.new("L", (width_px, height_px))
    draw = ImageDraw.Draw(mask)
    drops = rng.uniform((0, -20, 0.02, 30), (width_px, height_px, 0.085, 110), (240, 4))
    for x_px, y_px, length, alpha in drops.tolist():
        length_px = length * height_px
        draw.line([x_px, y_px, x_px - 0.2 * length_px, y_px + length_px], fill=int(alpha))
    soft = np.asarray(mask.filter(ImageFilter.GaussianBlur(width_px / 640)), np.float32)[..., None] * np.float32(0.6 / 255.0)
    image += soft * (np.float32(brightness) - image)
