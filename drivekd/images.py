"""The one image path, numpy and Pillow: training and car alike.

Files or bytes become uint8 RGB [H, W, 3]; those become normalised float32 [3, S, S]. One square tile a camera, aspect not
kept, as Drive-KD released it. Equal to transformers' PIL image processor of the InternVL family (a test holds it).
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from drivekd.errors import DataError

RGBImage: TypeAlias = NDArray[np.uint8]  # [H, W, 3]
PixelValues: TypeAlias = NDArray[np.float32]  # [3, S, S]

MAX_IMAGE_PIXELS = 64_000_000  # eight 8-megapixel cameras' worth: above it a file is taken for a decompression bomb


@dataclass(frozen=True)
class ImageSettings:
    """How a camera image becomes pixel_values. size_px: side of the square tile; mean, std: per RGB channel, of 0..1 values."""

    size_px: int
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)  # ImageNet, as InternVL's preprocessor_config.json
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)


def load_image(path: Path) -> RGBImage:
    """Read an image file as uint8 RGB [H, W, 3]. Raises DataError naming the file."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: image cannot be read ({error.strerror})") from error
    return decode_image(data, str(path))


def decode_image(data: bytes, source: str) -> RGBImage:
    """Decode JPEG, PNG, ... bytes as uint8 RGB [H, W, 3]. `source` names the image in errors. Raises DataError."""
    if not data:
        raise DataError(f"{source}: image is empty (0 bytes)")
    try:
        with Image.open(io.BytesIO(data)) as image:
            width, height = image.size
            if width * height > MAX_IMAGE_PIXELS:
                raise DataError(f"{source}: image of {width}x{height} px is larger than {MAX_IMAGE_PIXELS:,} pixels")
            if image.mode.startswith(("I", "F")):  # convert() would clip 16-bit values at 255: a white picture
                raise DataError(
                    f"{source}: image has more than 8 bits a channel (Pillow mode {image.mode}); convert it to 8 bits"
                )
            array = np.asarray(image.convert("RGB"))
    except UnidentifiedImageError as error:
        raise DataError(f"{source}: not an image that Pillow can read ({len(data)} bytes)") from error
    except Image.DecompressionBombError as error:
        raise DataError(f"{source}: image is larger than {MAX_IMAGE_PIXELS:,} pixels ({error})") from error
    except (OSError, SyntaxError, ValueError, RuntimeError) as error:  # Pillow's and its codecs' words for a broken file
        raise DataError(f"{source}: image is truncated or broken ({error})") from error
    return check_image(array, source)


def check_image(image: RGBImage, source: str) -> RGBImage:
    """Return `image` when it is uint8 [H, W, 3] with H, W > 0, else raise DataError."""
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise DataError(f"{source}: expected a uint8 RGB image [H, W, 3], got {image.dtype} {list(image.shape)}")
    if image.shape[0] == 0 or image.shape[1] == 0:
        raise DataError(f"{source}: image of size zero ({image.shape[1]}x{image.shape[0]} px)")
    return image


def resize(image: RGBImage, size_px: int) -> RGBImage:
    """Bicubic resize of [H, W, 3] to [size_px, size_px, 3], aspect not kept."""
    if image.shape[:2] == (size_px, size_px):
        return image
    return np.asarray(Image.fromarray(image).resize((size_px, size_px), Image.Resampling.BICUBIC))


def normalize(image: RGBImage, settings: ImageSettings) -> PixelValues:
    """uint8 [S, S, 3] -> float32 [3, S, S], (value / 255 - mean) / std."""
    mean = np.asarray(settings.mean, np.float32)
    std = np.asarray(settings.std, np.float32)
    scaled = (image.astype(np.float32) * np.float32(1 / 255) - mean) / std  # [S, S, 3]
    return np.ascontiguousarray(scaled.transpose(2, 0, 1))


def preprocess(image: RGBImage, settings: ImageSettings) -> PixelValues:
    """uint8 RGB [H, W, 3] of any size -> float32 pixel_values [3, S, S]."""
    return normalize(resize(image, settings.size_px), settings)
