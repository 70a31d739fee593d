"""The cameras of a frame: the model's image of each, and how often it is taken anew.

Between two takes a camera's last tile stands, and with it all K/V up to the next camera. For cameras whose view changes slowly.
The car's own rates decide what it may miss: nothing here looks at what an image shows.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite

from drivekd.errors import UsageError
from drivekd.images import ImageForm, RGBImage, check_image, tiles_of
from drivekd.runtime.answers.deadline import Deadline, DeadlineExpiredError

# A camera of 10 Hz asked to refresh at 2 Hz is due at its fifth frame: sums of .1 s end just below .5 s.
EARLY = 1e-3  # share of a period


@dataclass(frozen=True, eq=False)
class _Taken:
    tile: RGBImage  # or several, one below the other
    at_s: float


class Refresh:
    """rates_hz: by camera; a camera without one is taken anew at every frame. cameras: that exist, () = any.

    ages_s: of each tile of the last frame, 0 = taken with it.
    """

    def __init__(self, rates_hz: Mapping[str, float], cameras: Sequence[str] = ()) -> None:
        """Raises UsageError: an unknown camera, a rate that is not above 0."""
        for camera, rate_hz in rates_hz.items():
            if cameras and camera not in cameras:
                raise UsageError(f"refresh_hz: camera {camera!r} is unknown to this bundle; it has: {', '.join(cameras)}")
            if not (isfinite(rate_hz) and rate_hz > 0):
                raise UsageError(
                    f"refresh_hz: camera {camera!r} has {rate_hz} Hz; expected a rate above 0. Leave the camera out to have it "
                    "at every frame"
                )
        self._periods_s = {camera: 1 / rate_hz for camera, rate_hz in rates_hz.items()}
        self._taken: dict[str, _Taken] = {}
        self.ages_s: dict[str, float] = {}

    def taken(self, tiles: Mapping[str, RGBImage], now_s: float | None = None) -> dict[str, RGBImage]:
        """The tiles to answer about, in the order given: new ones of cameras that are due, earlier ones of the others.

        now_s: time of the frame on a clock of the caller's, None = time.monotonic(). A clock that goes back starts anew.
        """
        now_s = time.monotonic() if now_s is None else now_s
        for camera in self._periods_s:
            if camera in tiles and self._due(camera, tiles[camera], now_s):
                self._taken[camera] = _Taken(tiles[camera].copy(), now_s)  # a copy: cameras reuse their buffers
        held = {camera: self._taken[camera] for camera in tiles if camera in self._periods_s}
        self.ages_s = {camera: now_s - held[camera].at_s if camera in held else 0.0 for camera in tiles}
        return {camera: held[camera].tile if camera in held else tile for camera, tile in tiles.items()}

    def _due(self, camera: str, tile: RGBImage, now_s: float) -> bool:
        last = self._taken.get(camera)
        if last is None or last.tile.shape != tile.shape:
            return True
        age_s = now_s - last.at_s
        return not 0 <= age_s < self._periods_s[camera] * (1 - EARLY)  # also where the age is no number: no tile stands forever


def camera_tiles(
    images: Mapping[str, RGBImage],
    cameras: Sequence[str],
    settings: ImageForm,
    deadline: Deadline | None = None,
) -> dict[str, RGBImage]:
    """Images by camera, uint8 [H, W, 3] -> each one's tiles, uint8, one below the other where there are several.

    They come in the bundle's camera order, or as given when it states none.
    Raises UsageError without images or with a camera that the bundle does not know, DataError on an image that is none,
    DeadlineExpiredError between two images: six of 1600 x 900 px take some 70 ms.
    """
    if not images:
        raise UsageError("no images: a frame has at least one camera image")
    if cameras and (unknown := [name for name in images if name not in cameras]):
        raise UsageError(f"camera {unknown[0]!r} is unknown to this bundle; it has: {', '.join(cameras)}")
    names = [name for name in cameras if name in images] or list(images)
    checked = {name: check_image(images[name], name) for name in names}
    tiles: dict[str, RGBImage] = {}
    for name, image in checked.items():
        if deadline is not None and deadline.interruption():
            raise DeadlineExpiredError
        tiles[name] = tiles_of(image, settings)
    return tiles
