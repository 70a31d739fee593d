"""The cameras of one frame under one setting."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeAlias

import numpy as np

from drivekd.errors import UsageError
from drivekd.images import RGBImage, check_image
from drivekd.sample import CAMERAS

from . import blur, lens, light, sensor, transmission, weather
from .draws import frame_seed, generator
from .settings import CLEAN, DEFAULT_SEVERITY, NO_IMAGE, SETTINGS, SEVERITIES

__all__ = ["corrupted_frame", "frame_seed", "implementation"]

Corruption: TypeAlias = Callable[[RGBImage, int, np.random.Generator], RGBImage]

_EVERY_CAMERA: dict[str, Corruption] = {
    "BitError": transmission.bit_error,
    "Fog": weather.fog,
    "H256ABRCompression": transmission.h265,
    "LowLight": light.low_light,
    "Rain": weather.rain,
    "Snow": weather.snow,
    "Brightness": light.brightness,
    "ColorQuant": transmission.color_quant,
    "MotionBlur": blur.motion_blur,
    "Saturate": light.saturate,
    "ZoomBlur": blur.zoom_blur,
}
_SOME_CAMERAS: dict[str, Corruption] = {
    "LensObstacleCorruption": lens.lens_obstacle,
    "WaterSplashCorruption": lens.water_splash,
}


def corrupted_frame(
    images: Mapping[str, RGBImage], setting: str, *, severity: int | None = None, seed: int
) -> dict[str, RGBImage]:
    """The same cameras, each uint8 RGB [H, W, 3] of its own size, as `setting` leaves them; `images` stay as they are.

    severity: 1 (mild) to 5, None for DriveBench's (DEFAULT_SEVERITY); clean and NoImage have none and take any.
    seed: the frame's, from `frame_seed`. What happens to a camera depends on seed, setting, severity, its name and its picture,
    not on which others are shown: where only some are hit (CameraCrash, lens), they are drawn among nuScenes' six. Where a name
    is none of those, they are drawn among the names given, so give all of the frame's.
    Raises UsageError (unknown setting, severity out of range), DataError (an image that is not uint8 RGB).
    """
    severity = checked_severity(setting, severity)
    for camera, image in images.items():
        check_image(image, camera)
    hit = _cameras_hit(images, setting, severity, seed)
    return {
        camera: _corrupted(image, setting, severity, generator(seed, setting, camera)) if camera in hit else image.copy()
        for camera, image in images.items()
    }


def checked_severity(setting: str, severity: int | None) -> int:
    """The severity that a setting will have. Raises UsageError for an unknown setting or a severity that is not 1 to 5."""
    if setting not in SETTINGS:
        raise UsageError(f"unknown picture setting {setting!r}; known: {', '.join(SETTINGS)}")
    if severity is None:
        return DEFAULT_SEVERITY.get(setting, 1)
    if isinstance(severity, bool) or severity not in SEVERITIES:
        raise UsageError(f"severity {severity!r} of {setting}: expected 1 (mild) to 5 (worst)")
    return int(severity)


def implementation(setting: str) -> str:
    """How a setting is computed on this machine, for a report: BitError and H.265 take PyAV's codecs where it is installed.

    Raises UsageError for an unknown setting.
    """
    checked_severity(setting, None)
    return transmission.IMPLEMENTATIONS[setting]() if setting in transmission.IMPLEMENTATIONS else "numpy, Pillow"


def _cameras_hit(images: Mapping[str, RGBImage], setting: str, severity: int, seed: int) -> set[str]:
    if setting == CLEAN:
        return set()
    pool = CAMERAS if set(images) <= set(CAMERAS) else tuple(sorted(images))
    if setting == "CameraCrash":
        return sensor.crashed(pool, severity, generator(seed, setting))
    if setting == "FrameLost":
        return {camera for camera in images if sensor.is_lost(severity, generator(seed, setting, camera))}
    if setting in _SOME_CAMERAS:
        return lens.cameras_hit(pool, generator(seed, setting))
    return set(images)


def _corrupted(image: RGBImage, setting: str, severity: int, rng: np.random.Generator) -> RGBImage:
    if setting in (NO_IMAGE, "CameraCrash", "FrameLost"):
        return sensor.black(image)
    return (_EVERY_CAMERA | _SOME_CAMERAS)[setting](image, severity, rng)
