"""The one image path, numpy and Pillow: training and car alike.

Files or bytes become uint8 RGB [H, W, 3], those a camera's tiles in uint8, those normalised float32. Tiles have a fixed size,
aspect not kept: InternVL takes one square [3, S, S] a camera, as Drive-KD released it, or a grid of them; Qwen2.5-VL takes one
tile as patches. Equal to transformers' PIL image processors of both families (tests hold it).
"""

from __future__ import annotations

import io
import struct
import sys
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, UnidentifiedImageError

from drivekd.errors import DataError
from drivekd.image_format import FORMATS_TAKEN, ImageFormat, bits_a_channel, image_format, seems
from drivekd.tiling import Tiling, cut

RGBImage: TypeAlias = NDArray[np.uint8]  # [H, W, 3]
# [3, S, S], or [tiles, 3, S, S] of a grid, or patches [rows, columns, merge², 3 * frames * patch²]
PixelValues: TypeAlias = NDArray[np.float32]

# Of the way from a file to pixel_values. What would give a trained model other numbers for the same file raises it; checkpoints
# and bundles of another version are refused.
PREPROCESSING_VERSION = 1

MAX_IMAGE_PIXELS = 64_000_000  # eight 8-megapixel cameras' worth: above it a file is taken for a decompression bomb
MAX_IMAGE_BYTES = 4 * MAX_IMAGE_PIXELS + (
    1 << 20
)  # of a BMP of that size: a longer file is no picture, and is not read to its end


@dataclass(frozen=True)
class ImageSettings:
    """How a camera image becomes pixel_values. size_px: side of the square tile; mean, std: per RGB channel, of 0..1 values."""

    size_px: int
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)  # ImageNet, as InternVL's preprocessor_config.json
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)

    @property
    def tiling(self) -> Tiling:
        """The tiles of one image."""
        return Tiling()

    @property
    def tile_px(self) -> tuple[int, int]:
        """Width and height of one tile."""
        return self.size_px, self.size_px

    @property
    def tiles_px(self) -> tuple[int, int]:
        """Width and height of all tiles of an image, one below the other."""
        return self.size_px, self.size_px * self.tiling.num_tiles

    @property
    def pixel_shape(self) -> tuple[int, ...]:
        """Shape of one image's pixel_values."""
        return 3, self.size_px, self.size_px


@dataclass(frozen=True)
class TiledSettings(ImageSettings):
    """As ImageSettings, but an image becomes a grid of tiles. tiles: "2x1", "2x1+thumbnail", ...: see drivekd.tiling.

    A form of its own, so that what is written about one tile a camera stays what it was before there were grids.
    """

    tiles: str = "2x1"

    @property
    def tiling(self) -> Tiling:
        """The tiles of one image. Raises ValueError where `tiles` is no tiling."""
        return Tiling.parse(self.tiles)

    @property
    def pixel_shape(self) -> tuple[int, ...]:
        """Shape of one image's pixel_values: its tiles together."""
        return self.tiling.num_tiles, 3, self.size_px, self.size_px


@dataclass(frozen=True)
class PatchSettings:
    """How a camera image becomes Qwen2.5-VL's flattened patches.

    width_px, height_px: the tile, multiples of `token_px`. patch_px: side of a patch; merge: patches along one side of a vision
    token; frames: a still image is repeated this often, since the tower's convolution spans that many video frames.
    """

    width_px: int
    height_px: int
    mean: tuple[float, float, float] = (0.48145466, 0.4578275, 0.40821073)  # CLIP, as Qwen2.5-VL's preprocessor_config.json
    std: tuple[float, float, float] = (0.26862954, 0.26130258, 0.27577711)
    patch_px: int = 14
    merge: int = 2
    frames: int = 2

    @property
    def tiling(self) -> Tiling:
        """One tile an image: it has the shape that the image needs."""
        return Tiling()

    @property
    def tile_px(self) -> tuple[int, int]:
        """Width and height that every image is resized to."""
        return self.width_px, self.height_px

    @property
    def tiles_px(self) -> tuple[int, int]:
        """As tile_px: there is one."""
        return self.tile_px

    @property
    def token_px(self) -> int:
        """Side of the square that one vision token covers."""
        return self.patch_px * self.merge

    @property
    def token_grid(self) -> tuple[int, int]:
        """Rows and columns of vision tokens of one image."""
        return self.height_px // self.token_px, self.width_px // self.token_px

    @property
    def pixel_shape(self) -> tuple[int, ...]:
        """Shape of one image's pixel_values; its first axes tell the tower the image's shape."""
        return *self.token_grid, self.merge**2, 3 * self.frames * self.patch_px**2


ImageForm: TypeAlias = ImageSettings | PatchSettings


def load_image(path: Path) -> RGBImage:
    """Read an image file as uint8 RGB [H, W, 3], see `decode_image`. Raises DataError naming the file."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_IMAGE_BYTES + 1)
    except OSError as error:
        raise DataError(f"{path}: image cannot be read ({error.strerror}){_locale_advice(path)}") from error
    except ValueError as error:  # a name that this locale cannot spell, or one with a zero in it
        raise DataError(f"{path}: image cannot be read ({error}){_locale_advice(path)}") from error
    return decode_image(data, str(path))


def _size(data: bytes) -> str:
    return f"{len(data):,} bytes" if len(data) <= MAX_IMAGE_BYTES else f"more than {MAX_IMAGE_BYTES:,} bytes"


def _locale_advice(path: Path) -> str:
    encoding = sys.getfilesystemencoding()
    if encoding == "utf-8" or str(path).isascii():
        return ""
    return f"; this locale looks names up in {encoding}: set PYTHONUTF8=1 if the file has a UTF-8 name"


def decode_image(data: bytes, source: str) -> RGBImage:
    """Decode the bytes of a JPEG, PNG, WebP or BMP as uint8 RGB [H, W, 3]. `source` names the image in errors.

    The first bytes decide, not a name; no other format is opened, and no program is started. The picture is turned as its EXIF
    orientation says (one that cannot be read turns nothing). Alpha is dropped, whatever it is: the stored colours count, as in
    transformers' processors. Grey becomes three equal channels; CMYK is taken as Adobe stores it, inverted; colour profiles are
    not applied. A JPEG with further pictures in it (MPO) gives the first, the main one.

    Raises DataError: another format (it says which), more than 8 bits a channel, an animation, more than MAX_IMAGE_PIXELS,
    truncated or broken, empty.
    """
    if not data:
        raise DataError(f"{source}: image is empty (0 bytes)")
    form = image_format(data)
    if form is None:
        raise DataError(
            f"{source}: not an image of a format that is taken ({FORMATS_TAKEN}): {_size(data)}, by their beginning {seems(data)}"
        )
    if len(data) > MAX_IMAGE_BYTES:
        raise DataError(f"{source}: {form} image is larger than {MAX_IMAGE_BYTES:,} bytes")
    if (bits := bits_a_channel(data, form)) > 8:
        raise DataError(f"{source}: image has more than 8 bits a channel ({form} of {bits} bits); convert it to 8 bits")
    try:
        with Image.open(io.BytesIO(data), formats=(form,)) as image:
            _check_header(image, form, source)
            image.info.pop("transparency", None)  # the other spelling of alpha
            array = np.asarray(_upright(image).convert("RGB"))
    except (UnidentifiedImageError, *_BROKEN) as error:
        raise DataError(f"{source}: {form} image is truncated or broken ({_words(error, data)})") from error
    except Image.DecompressionBombError as error:
        raise DataError(f"{source}: image is larger than {MAX_IMAGE_PIXELS:,} pixels ({error})") from error
    return check_image(array, source)


def image_size_px(path: Path) -> tuple[int, int]:
    """Width and height of the picture that `load_image` gives, from the file's head alone. Raises DataError naming the file."""
    try:
        with path.open("rb") as file:
            form = image_format(file.read(64))
        if form is None:
            raise DataError(f"{path}: not an image of a format that is taken ({FORMATS_TAKEN})")
        with Image.open(path, formats=(form,)) as image:
            width, height = image.size
            return (height, width) if _orientation(image) in _ON_THEIR_SIDE else (width, height)
    except (UnidentifiedImageError, Image.DecompressionBombError, *_BROKEN) as error:
        raise DataError(f"{path}: the image's size cannot be read ({type(error).__name__}: {error})") from error


# Pillow's and its codecs' words for a broken file: they index, unpack and look up what they read before they check it.
_CARELESS = (LookupError, TypeError, AttributeError, OverflowError, struct.error, zlib.error)
_BROKEN = (OSError, SyntaxError, ValueError, RuntimeError, EOFError, *_CARELESS)
_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK")  # at most 8 bits a channel: convert() clips others to white


def _check_header(image: Image.Image, form: ImageFormat, source: str) -> None:
    """Before a pixel is decoded."""
    width, height = image.size
    if width * height > MAX_IMAGE_PIXELS:
        raise DataError(f"{source}: image of {width}x{height} px is larger than {MAX_IMAGE_PIXELS:,} pixels")
    if image.mode not in _MODES:
        raise DataError(f"{source}: image has more than 8 bits a channel (Pillow mode {image.mode}); convert it to 8 bits")
    frames = getattr(image, "n_frames", 1)
    if form != "JPEG" and frames > 1:  # in a JPEG the others are previews or a second eye
        raise DataError(f"{source}: {form} image is an animation of {frames} frames; expected one picture")


def _upright(image: Image.Image) -> Image.Image:
    """Turned as EXIF says (tag 274, values 2 to 8), or as XMP says where EXIF does not.

    Like PIL.ImageOps.exif_transpose; that one writes the other EXIF tags anew, and fails on the odd ones of some cameras.
    """
    image.load()
    turn = _TURNS.get(_orientation(image))
    return image if turn is None else image.transpose(turn)


def _orientation(image: Image.Image) -> int:
    """1, upright, where the file says nothing or cannot be understood."""
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation)
    except _BROKEN:  # broken notes about a picture that is whole
        return 1
    return orientation if isinstance(orientation, int) else 1


_TURNS = {  # how the stored picture is brought upright (Exif 2.32, table 4)
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_ON_THEIR_SIDE = (5, 6, 7, 8)


def _words(error: Exception, data: bytes) -> str:
    """UnidentifiedImageError names an object in memory, which helps nobody."""
    return f"{len(data):,} bytes" if isinstance(error, UnidentifiedImageError) else f"{type(error).__name__}: {error}"


def check_image(image: RGBImage, source: str) -> RGBImage:
    """Return `image` when it is uint8 [H, W, 3] with H, W > 0, else raise DataError."""
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise DataError(f"{source}: expected a uint8 RGB image [H, W, 3], got {image.dtype} {list(image.shape)}")
    if image.shape[0] == 0 or image.shape[1] == 0:
        raise DataError(f"{source}: image of size zero ({image.shape[1]}x{image.shape[0]} px)")
    return image


def resize(image: RGBImage, size_px: int | tuple[int, int]) -> RGBImage:
    """Bicubic resize of [H, W, 3] to a square of side size_px, or to (width, height); aspect not kept."""
    width, height = (size_px, size_px) if isinstance(size_px, int) else size_px
    if image.shape[:2] == (height, width):
        return image
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC))


def normalize(image: RGBImage, settings: ImageForm) -> PixelValues:
    """uint8 [H, W, 3] -> float32 [3, H, W], (value / 255 - mean) / std."""
    mean = np.asarray(settings.mean, np.float32)
    std = np.asarray(settings.std, np.float32)
    scaled = (image.astype(np.float32) * np.float32(1 / 255) - mean) / std  # [H, W, 3]
    return np.ascontiguousarray(scaled.transpose(2, 0, 1))


def patches(pixels: PixelValues, settings: PatchSettings) -> PixelValues:
    """float32 [3, H, W] of the tile's size -> [rows, columns, merge², 3 * frames * patch²].

    Flattened to [patches, values] these are the rows that transformers' Qwen2VLImageProcessor makes, in its order.
    """
    rows, columns = settings.token_grid
    merge, side = settings.merge, settings.patch_px
    split = pixels.reshape(3, rows, merge, side, columns, merge, side)
    split = split.transpose(1, 4, 2, 5, 0, 3, 6)  # [rows, columns, merge, merge, 3, side, side]
    still = np.repeat(split[:, :, :, :, :, None], settings.frames, axis=5)  # [..., 3, frames, side, side]
    return still.reshape(settings.pixel_shape)


def tiles_of(image: RGBImage, settings: ImageForm) -> RGBImage:
    """uint8 RGB [H, W, 3] of any size -> an image's tiles one below the other, uint8, `tiles_px` wide and high."""
    tiling, (width, height) = settings.tiling, settings.tile_px
    picture = resize(image, (tiling.columns * width, tiling.rows * height))
    if not tiling.is_grid:
        return picture
    tiles = cut(picture, tiling)
    return np.concatenate([tiles, resize(image, settings.tile_px)]) if tiling.thumbnail else tiles


def pixel_values(tiles: RGBImage, settings: ImageForm) -> PixelValues:
    """An image's tiles, as `tiles_of` gives them -> float32 of the settings' pixel_shape."""
    width, height = settings.tiles_px
    assert tiles.shape == (height, width, 3), f"expected the tiles of an image, [{height}, {width}, 3], got {list(tiles.shape)}"
    pixels = normalize(tiles, settings)
    if isinstance(settings, PatchSettings):
        return patches(pixels, settings)
    if not settings.tiling.is_grid:
        return pixels
    return np.ascontiguousarray(pixels.reshape(3, -1, settings.size_px, settings.size_px).swapaxes(0, 1))


def preprocess(image: RGBImage, settings: ImageForm) -> PixelValues:
    """uint8 RGB [H, W, 3] of any size -> float32 pixel_values of the settings' pixel_shape."""
    return pixel_values(tiles_of(image, settings), settings)
