"""Pictures of a video file, one by one. PyAV is optional: the extra `video`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from drivekd.errors import DataError, UsageError
from drivekd.images import RGBImage


@dataclass(frozen=True)
class VideoPicture:
    """image: uint8 RGB [H, W, 3], turned as the file says. time_s: since the start of the video."""

    index: int
    time_s: float
    image: RGBImage


def video_pictures(path: Path, *, every: int = 1) -> Iterator[VideoPicture]:
    """Decode a video; every: give pictures 0, every, 2 * every, ... alone.

    Raises UsageError without PyAV, DataError when the file cannot be read or holds no picture.
    """
    try:
        import av
    except ImportError as error:
        raise UsageError("reading a video needs PyAV: pip install 'drivekd[video]'") from error
    index = -1
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise DataError(f"{path}: holds no video stream")
            for index, picture in enumerate(container.decode(video=0)):
                if index % every == 0:
                    yield VideoPicture(index, float(picture.time or 0.0), _upright(picture))
    except (av.error.FFmpegError, OSError) as error:
        raise DataError(f"{path}: video cannot be read ({error})") from error
    if index < 0:
        raise DataError(f"{path}: video without a picture")


def _upright(picture: Any) -> RGBImage:
    """A camera mounted on its side or head writes a rotation beside its pictures; players apply it, so must we."""
    pixels: RGBImage = picture.to_ndarray(format="rgb24")
    quarter_turns = round(getattr(picture, "rotation", 0) / 90)  # degrees counter-clockwise; PyAV below 12.3 does not tell
    return np.ascontiguousarray(np.rot90(pixels, quarter_turns)) if quarter_turns % 4 else pixels
