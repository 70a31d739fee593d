"""Every encoding against a known picture; every contradiction is an error that names the topic."""

from __future__ import annotations

import io
from array import array
from types import SimpleNamespace

import numpy as np
import pytest
from drivekd_ros.input.conversions import ENCODINGS, rgb_from_compressed, rgb_from_image
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image as Picture

from drivekd.errors import DataError

RNG = np.random.default_rng(7)
RGB = RNG.integers(0, 256, (6, 8, 3), np.uint8)  # [H, W, 3]


def message(pixels: NDArray[np.uint8], encoding: str, *, padding: int = 0, **changes: object) -> SimpleNamespace:
    """pixels [H, W, bytes per pixel] with `padding` bytes after each row, as an Image message carries them."""
    height, width, size = pixels.shape
    rows = np.pad(pixels.reshape(height, width * size), ((0, 0), (0, padding)), constant_values=99)
    fields = {"height": height, "width": width, "step": width * size + padding, "encoding": encoding}
    return SimpleNamespace(header=None, data=array("B", rows.tobytes()), **(fields | changes))


def rgba(order: str) -> NDArray[np.uint8]:
    planes = {"r": RGB[:, :, 0], "g": RGB[:, :, 1], "b": RGB[:, :, 2], "a": np.full(RGB.shape[:2], 17, np.uint8)}
    return np.stack([planes[letter] for letter in order], axis=-1)


@pytest.mark.parametrize("padding", [0, 5])
@pytest.mark.parametrize("order", ["rgb", "bgr", "rgba", "bgra"])
def test_colour_orders_give_the_same_picture(order: str, padding: int) -> None:
    converted = rgb_from_image(message(rgba(order), order + "8", padding=padding), "topic")
    np.testing.assert_array_equal(converted, RGB)
    assert converted.dtype == np.uint8
    assert converted.flags.c_contiguous


def test_mono_becomes_three_equal_channels() -> None:
    converted = rgb_from_image(message(RGB[:, :, :1], "mono8", padding=3), "topic")
    np.testing.assert_array_equal(converted, RGB[:, :, [0, 0, 0]])


@pytest.mark.parametrize(("encoding", "luma"), [("yuv422", 1), ("uyvy", 1), ("yuv422_yuy2", 0), ("yuyv", 0)])
@pytest.mark.parametrize(
    ("yuv", "rgb"),
    [  # BT.601 limited range: the corners of the standard
        ((16, 128, 128), (0, 0, 0)),
        ((235, 128, 128), (255, 255, 255)),
        ((82, 90, 240), (255, 0, 0)),
        ((145, 54, 34), (0, 255, 0)),
        ((41, 240, 110), (0, 0, 255)),
    ],
)
def test_yuv_colours(encoding: str, luma: int, yuv: tuple[int, int, int], rgb: tuple[int, int, int]) -> None:
    pixels = np.zeros((2, 4, 2), np.uint8)
    pixels[:, :, luma] = yuv[0]
    pixels[:, 0::2, 1 - luma], pixels[:, 1::2, 1 - luma] = yuv[1], yuv[2]
    converted = rgb_from_image(message(pixels, encoding), "topic")
    # 2 of 255: the standard's own corners are rounded to whole numbers.
    np.testing.assert_allclose(converted, np.broadcast_to(np.array(rgb), converted.shape), atol=2)


BAYER = {"bayer_rggb8": "rggb", "bayer_bggr8": "bggr", "bayer_gbrg8": "gbrg", "bayer_grbg8": "grbg"}


def mosaic(picture: NDArray[np.uint8], pattern: str) -> NDArray[np.uint8]:
    """What a sensor behind this colour filter sees of picture [H, W, 3]: [H, W, 1]."""
    seen = np.zeros((*picture.shape[:2], 1), np.uint8)
    for place, letter in enumerate(pattern):
        row, column = divmod(place, 2)
        seen[row::2, column::2, 0] = picture[row::2, column::2, "rgb".index(letter)]
    return seen


@pytest.mark.parametrize("encoding", sorted(BAYER))
def test_bayer_gives_back_a_plain_colour_exactly(encoding: str) -> None:
    plain = np.broadcast_to(np.array([200, 90, 30], np.uint8), (6, 8, 3))
    converted = rgb_from_image(message(mosaic(plain, BAYER[encoding]), encoding), "topic")
    np.testing.assert_array_equal(converted, plain)


@pytest.mark.parametrize("encoding", sorted(BAYER))
def test_bayer_follows_a_ramp_and_keeps_measured_pixels(encoding: str) -> None:
    ramp = np.stack([np.add.outer(np.arange(8), np.arange(10)) * step for step in (8, 5, 3)], -1).astype(np.uint8)
    seen = mosaic(ramp, BAYER[encoding])
    converted = rgb_from_image(message(seen, encoding), "topic")
    # Bilinear interpolation of a linear ramp is exact inside (1: it rounds down); at a mirrored border it is not.
    np.testing.assert_allclose(converted[1:-1, 1:-1].astype(int), ramp[1:-1, 1:-1], atol=1)
    for place, letter in enumerate(BAYER[encoding]):
        row, column = divmod(place, 2)
        channel = converted[row::2, column::2, "rgb".index(letter)]
        np.testing.assert_array_equal(channel, seen[row::2, column::2, 0])


@given(height=st.integers(2, 7), half=st.integers(1, 4), padding=st.integers(0, 9), encoding=st.sampled_from(sorted(ENCODINGS)))
def test_every_encoding_gives_the_stated_shape(height: int, half: int, padding: int, encoding: str) -> None:
    pixels = np.full((height, 2 * half, ENCODINGS[encoding][0]), 130, np.uint8)
    converted = rgb_from_image(message(pixels, encoding, padding=padding), "topic")
    assert converted.shape == (height, 2 * half, 3)
    assert converted.dtype == np.uint8


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"encoding": "rgb16"}, "'rgb16' is not supported; supported: rgb8"),
        ({"encoding": ""}, "'' is not supported"),
        ({"step": 23}, "step is 23 bytes, 8 px of rgb8 need 24"),
        ({"step": 25}, "144 bytes of data, step 25 x height 6 need 150"),
        ({"height": 7}, "144 bytes of data, step 24 x height 7 need 168"),
        ({"height": 5}, "144 bytes of data"),
        ({"height": 0}, "size zero"),
        ({"width": 0}, "size zero"),
        ({"data": array("B")}, "0 bytes of data"),
        ({"encoding": "yuv422", "width": 7, "step": 24}, "odd width 7"),
        ({"encoding": "bayer_rggb8", "width": 1, "step": 24}, "its cell is 2x2"),
    ],
)
def test_contradictions_are_refused(changes: dict[str, object], words: str) -> None:
    broken = message(RGB, "rgb8")
    vars(broken).update(changes)
    with pytest.raises(DataError, match=words):
        rgb_from_image(broken, "/cam/image")


def jpeg(width: int = 32, height: int = 24) -> bytes:
    buffer = io.BytesIO()
    Picture.fromarray(np.full((height, width, 3), (200, 90, 30), np.uint8)).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


def bomb() -> bytes:
    """A PNG of 20000x20000 black pixels in a few hundred kB."""
    buffer = io.BytesIO()
    Picture.new("1", (20_000, 20_000)).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


@pytest.mark.parametrize("wrap", [bytes, lambda data: array("B", data)])
def test_jpeg_is_decoded(wrap: object) -> None:
    converted = rgb_from_compressed(SimpleNamespace(header=None, format="jpeg", data=wrap(jpeg())), "topic")
    # 3 of 255: JPEG at quality 95.
    np.testing.assert_allclose(converted.astype(int), np.broadcast_to([200, 90, 30], (24, 32, 3)), atol=3)


@pytest.mark.parametrize(
    ("data", "image_format", "words"),
    [
        (b"", "jpeg", "empty"),
        (jpeg()[:-100], "jpeg", "truncated"),
        (b"no picture at all", "jpeg", "not an image"),
        (bomb(), "png", "larger than|not an image"),
        (jpeg(), "16UC1; compressedDepth png", "depth"),
    ],
)
def test_unusable_compressed_pictures_are_refused(data: bytes, image_format: str, words: str) -> None:
    with pytest.raises(DataError, match=words):
        rgb_from_compressed(SimpleNamespace(header=None, format=image_format, data=array("B", data)), "/cam/image/compressed")
