"""What a link does to pictures: BitError, ColorQuant, H.265 at a low rate. Each takes uint8 RGB [H, W, 3] and gives the same.

As DriveBench defines them. It corrupts a recorded video; a single picture has none, so BitError makes a short one (see `_drive`).
"""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
from PIL import Image

from drivekd.images import RGBImage

from . import codecs

_LOWER_RATE = (2, 4, 8, 16, 32)  # by what the video's bit rate is divided
_BYTES_AN_ERROR = (50_000, 25_000, 15_000, 10_000, 5_000)
_CLIP_FRAMES, _CLIP_ZOOM = 4, 0.01  # a picture's clip, and by how much each frame comes closer
_JPEG_QUALITY = 85
_HEADER_BYTES = 48  # of a frame: a decoder that loses these shows nothing at all


def color_quant(image: RGBImage, severity: int, rng: np.random.Generator) -> RGBImage:
    """The 5 - severity highest bits of each channel remain. Severity 5 leaves none: a black picture, by the rule's own words."""
    kept_bits = 5 - severity
    return image & np.uint8(256 - (1 << (8 - kept_bits)))


def h265(image: RGBImage, severity: int, rng: np.random.Generator) -> RGBImage:
    """Encoded with a fraction of the bits, and decoded.

    A video's rate control needs a video. Half the bits are 6 steps of H.265's quantiser, so a picture is encoded that much
    coarser than 23, which is hardly seen. Without PyAV: WebP, whose pictures are VP8's key frames: predicted, transformed and
    smoothed alike.
    """
    steps = _LOWER_RATE[severity - 1].bit_length() - 1
    if codecs.available():
        return codecs.h265(image, quantiser=min(23 + 6 * steps, 51))
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "WEBP", quality=(40, 20, 8, 2, 0)[severity - 1], method=2)
    with Image.open(buffer, formats=("WEBP",)) as decoded:
        return np.asarray(decoded.convert("RGB"))


def bit_error(image: RGBImage, severity: int, rng: np.random.Generator) -> RGBImage:
    """One byte in 50,000 to 5,000 of a stream is another one, `severity` of them at least; shown is what is then decoded.

    DriveBench spoils half as many, in a video whose frames inherit the errors of many before them; ours has only a few. The
    stream is H.264, whose errors move on with what moves. Without PyAV: a JPEG with a restart marker a row of blocks.
    """

    def spoiled(frames: list[bytes]) -> list[bytes]:
        return _with_errors(frames, _BYTES_AN_ERROR[severity - 1], severity, rng)

    if codecs.available():
        return codecs.h264_last_frame(_drive(image), spoiled)
    return _jpeg_with_errors(image, spoiled)


def _drive(image: RGBImage) -> list[RGBImage]:
    """A clip that ends in `image`: before, all was a little farther away."""
    height, width = image.shape[:2]
    frames = []
    for index in range(_CLIP_FRAMES):
        away = _CLIP_ZOOM * (_CLIP_FRAMES - 1 - index)
        margin_x, margin_y = max(round(width * away / 2), 0), max(round(height * away / 2), 0)
        wider = np.pad(image, ((margin_y, margin_y), (margin_x, margin_x), (0, 0)), mode="edge")
        frames.append(np.asarray(Image.fromarray(wider).resize((width, height), Image.Resampling.BILINEAR)))
    return frames


def _with_errors(frames: list[bytes], bytes_an_error: int, least: int, rng: np.random.Generator) -> list[bytes]:
    """Bytes behind each frame's header are replaced, the same ones first whatever the rate."""
    spoiled = [bytearray(frame) for frame in frames]
    sizes = [max(len(frame) - _HEADER_BYTES, 0) for frame in frames]
    ends = np.cumsum(sizes)
    if not ends[-1]:
        return frames
    count = max(int(ends[-1]) // bytes_an_error, least)
    draws = rng.random((count, 2))  # row by row: those of a milder severity come first
    for place, value in draws:
        at = int(place * ends[-1])
        frame = int(np.searchsorted(ends, at, side="right"))
        spoiled[frame][_HEADER_BYTES + at - int(ends[frame]) + sizes[frame]] = int(
            value * 255
        )  # never 0xff, a marker's beginning
    return [bytes(frame) for frame in spoiled]


def _jpeg_with_errors(image: RGBImage, spoiled: Callable[[list[bytes]], list[bytes]]) -> RGBImage:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=_JPEG_QUALITY, restart_marker_rows=1)
    data = buffer.getvalue()
    scan = data.index(b"\xff\xda")  # start of scan: behind it nothing but pixels and restart markers
    with Image.open(io.BytesIO(data[:scan] + spoiled([data[scan:]])[0]), formats=("JPEG",)) as decoded:
        return np.asarray(decoded.convert("RGB"))


IMPLEMENTATIONS: dict[str, Callable[[], str]] = {
    "BitError": lambda: codecs.told("libx264", "JPEG with restart markers (stand-in: PyAV is not installed)"),
    "H256ABRCompression": lambda: codecs.told("libx265", "WebP (stand-in: PyAV is not installed)"),
}
