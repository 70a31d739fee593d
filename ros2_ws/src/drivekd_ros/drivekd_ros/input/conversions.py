"""Image messages become uint8 RGB [H, W, 3]. Pure numpy: no rclpy here, any object with the fields of a message will do.

Choices: YUV is BT.601 limited range (what OpenCV's and so cv_bridge's YUV 4:2:2 conversions use); chroma is repeated, not
interpolated. Bayer is bilinear, each missing colour the mean of its nearest neighbours in the 3x3 window, borders mirrored.
mono8 becomes three equal channels. Alpha is dropped. 16-bit encodings are refused: a driver's bit depth is not in the message.

H, W: height and width in px.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from drivekd.errors import DataError
from drivekd.images import decode_image

RGBImage: TypeAlias = NDArray[np.uint8]  # [H, W, 3]
Rows: TypeAlias = NDArray[np.uint8]  # [H, W, bytes per pixel]


class ImageLike(Protocol):
    """The fields of sensor_msgs/Image that are read. step: bytes a row, padding included."""

    header: Any  # std_msgs/Header, passed on
    height: int
    width: int
    encoding: str
    step: int
    data: array[int] | bytes


class CompressedImageLike(Protocol):
    """The fields of sensor_msgs/CompressedImage that are read."""

    header: Any  # std_msgs/Header, passed on
    format: str
    data: array[int] | bytes


CameraMessage: TypeAlias = ImageLike | CompressedImageLike


def rgb_from_image(message: ImageLike, source: str) -> RGBImage:
    """Return the picture as contiguous uint8 RGB [H, W, 3]; `source` (a topic) names it in errors.

    Raises DataError when the encoding is not known, or size, step and data contradict each other.
    """
    known = ENCODINGS.get(message.encoding)
    if known is None:
        raise DataError(f"{source}: encoding '{message.encoding}' is not supported; supported: {', '.join(ENCODINGS)}")
    bytes_per_pixel, convert = known
    return convert(_rows(message, bytes_per_pixel, source))


def rgb_from_compressed(message: CompressedImageLike, source: str) -> RGBImage:
    """Decode JPEG, PNG, WebP or BMP, told by its first bytes, to uint8 RGB [H, W, 3]; turned as EXIF says, as files are.

    Raises DataError (another format, truncated, zero-size, bomb, more than 8 bits a channel, compressed depth).
    """
    if "compressedDepth" in message.format:
        raise DataError(f"{source}: format '{message.format}' holds depth, expected a JPEG or PNG camera image")
    return decode_image(bytes(memoryview(message.data)), source)


def _rows(message: ImageLike, bytes_per_pixel: int, source: str) -> Rows:
    """Checked view of the pixels without row padding: [H, W, bytes_per_pixel]."""
    height, width, step = message.height, message.width, message.step
    if height <= 0 or width <= 0:
        raise DataError(f"{source}: image of size zero ({width}x{height} px)")
    if step < width * bytes_per_pixel:
        raise DataError(f"{source}: step is {step} bytes, {width} px of {message.encoding} need {width * bytes_per_pixel}")
    data = np.frombuffer(message.data, np.uint8)
    if data.size != step * height:
        raise DataError(f"{source}: {data.size} bytes of data, step {step} x height {height} need {step * height}")
    rows = data.reshape(height, step)[:, : width * bytes_per_pixel]
    return rows.reshape(height, width, bytes_per_pixel)


def _forward(rows: Rows) -> RGBImage:
    return np.ascontiguousarray(rows[:, :, :3])


def _reversed(rows: Rows) -> RGBImage:
    return np.ascontiguousarray(rows[:, :, 2::-1])


def _grey(rows: Rows) -> RGBImage:
    return np.repeat(rows, 3, axis=2)


def _yuv422(luma: int) -> Callable[[Rows], RGBImage]:
    """Converter of packed 4:2:2, two bytes a pixel; `luma` is the place of Y in the pair (UYVY: 1, YUYV: 0)."""

    def convert(rows: Rows) -> RGBImage:
        width = rows.shape[1]
        if width % 2:
            raise DataError(f"yuv422 image of odd width {width} px; 4:2:2 pairs two pixels")
        y = rows[:, :, luma].astype(np.int32) - 16  # [H, W]
        chroma = rows[:, :, 1 - luma].astype(np.int32) - 128  # [H, W], U V U V ...
        u = np.repeat(chroma[:, 0::2], 2, axis=1)
        v = np.repeat(chroma[:, 1::2], 2, axis=1)
        # ITU-R BT.601, limited range, times 256: 255/219 = 298/256, 1.596 = 409/256, 0.813, 0.391, 2.018.
        scaled = 298 * y + 128
        rgb = np.stack([scaled + 409 * v, scaled - 100 * u - 208 * v, scaled + 516 * u], axis=-1) >> 8  # [H, W, 3]
        return rgb.clip(0, 255).astype(np.uint8)

    return convert


def _bayer(red_row: int, red_column: int) -> Callable[[Rows], RGBImage]:
    """Bilinear demosaicing of a mosaic whose red pixel stands at (red_row, red_column) of each 2x2 cell."""

    def convert(rows: Rows) -> RGBImage:
        raw = rows[:, :, 0].astype(np.uint16)  # [H, W]; 16 bits hold the sum of 16 weights of 255
        if raw.shape[0] < 2 or raw.shape[1] < 2:
            raise DataError(f"Bayer image of {raw.shape[1]}x{raw.shape[0]} px; its cell is 2x2")
        red, blue = np.zeros_like(raw), np.zeros_like(raw)
        red[red_row::2, red_column::2] = raw[red_row::2, red_column::2]
        blue[1 - red_row :: 2, 1 - red_column :: 2] = raw[1 - red_row :: 2, 1 - red_column :: 2]
        green = raw - red - blue
        planes = [_smooth(red) // 4, (_cross(green) + 4 * green) // 4, _smooth(blue) // 4]
        return np.stack(planes, axis=-1).astype(np.uint8)  # [H, W, 3]

    return convert


def _smooth(plane: NDArray[np.uint16]) -> NDArray[np.uint16]:
    """3x3 sum with weights [1 2 1] x [1 2 1]; mirroring without repeating the edge keeps the mosaic's phase."""
    padded = np.pad(plane, 1, mode="reflect")
    across = padded[:, :-2] + 2 * padded[:, 1:-1] + padded[:, 2:]
    total: NDArray[np.uint16] = across[:-2] + 2 * across[1:-1] + across[2:]
    return total


def _cross(plane: NDArray[np.uint16]) -> NDArray[np.uint16]:
    """Sum of the four direct neighbours."""
    padded = np.pad(plane, 1, mode="reflect")
    total: NDArray[np.uint16] = padded[:-2, 1:-1] + padded[2:, 1:-1] + padded[1:-1, :-2] + padded[1:-1, 2:]
    return total


# Names of sensor_msgs/image_encodings.hpp -> (bytes per pixel, converter). yuv422 is the old name of uyvy, yuv422_yuy2 of yuyv.
ENCODINGS: dict[str, tuple[int, Callable[[Rows], RGBImage]]] = {
    "rgb8": (3, _forward),
    "bgr8": (3, _reversed),
    "rgba8": (4, _forward),
    "bgra8": (4, _reversed),
    "mono8": (1, _grey),
    "yuv422": (2, _yuv422(luma=1)),
    "uyvy": (2, _yuv422(luma=1)),
    "yuv422_yuy2": (2, _yuv422(luma=0)),
    "yuyv": (2, _yuv422(luma=0)),
    "bayer_rggb8": (1, _bayer(0, 0)),
    "bayer_bggr8": (1, _bayer(1, 1)),
    "bayer_gbrg8": (1, _bayer(1, 0)),
    "bayer_grbg8": (1, _bayer(0, 1)),
}
