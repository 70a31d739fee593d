"""One image path: equal to transformers' reference on every size and shape, and every bad image named."""

from __future__ import annotations

import contextlib
import io
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image, ImageOps

from drivekd import images
from drivekd.errors import DataError
from drivekd.images import (
    MAX_IMAGE_PIXELS,
    ImageSettings,
    PatchSettings,
    RGBImage,
    check_image,
    decode_image,
    image_size_px,
    load_image,
    normalize,
    patches,
    preprocess,
    resize,
)

PNG = b"\x89PNG\r\n\x1a\n"
SHAPES = [(448, 448), (900, 1600), (37, 211), (211, 37), (1, 1), (1, 300), (112, 113), (449, 447)]


def noise(height: int, width: int, seed: int = 0) -> RGBImage:
    """Noise shows every wrong filter, shift and channel order."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def encoded(image: RGBImage, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, kind)
    return buffer.getvalue()


# --- against the reference ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size_px", [448, 112])
@pytest.mark.parametrize("shape", SHAPES)
def test_equal_to_transformers_pil_processor(shape: tuple[int, int], size_px: int) -> None:
    from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil

    settings = ImageSettings(size_px)
    reference = GotOcr2ImageProcessorPil(
        size={"height": size_px, "width": size_px},
        image_mean=list(settings.mean),
        image_std=list(settings.std),
        crop_to_patches=False,
    )
    image = noise(*shape)
    expected = reference(images=Image.fromarray(image), return_tensors="np")["pixel_values"][0]
    # 1e-6: the pixels are equal; v * (1/255) is rounded to fp32 here and there at another place (2 ulp of 2.6)
    np.testing.assert_allclose(preprocess(image, settings), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("width", "height"), [(588, 336), (28, 28), (112, 84), (84, 112)])
def test_equal_to_transformers_pil_processor_of_qwen(width: int, height: int) -> None:
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    settings = PatchSettings(width, height)
    reference = Qwen2VLImageProcessorPil(image_mean=list(settings.mean), image_std=list(settings.std), min_pixels=28 * 28)
    image = noise(height, width)  # of the tile's size: transformers would keep the shape of any other
    expected = reference(images=Image.fromarray(image), return_tensors="np")
    pixels = preprocess(image, settings)
    assert pixels.shape == settings.pixel_shape
    rows, columns = settings.token_grid
    assert expected["image_grid_thw"].tolist() == [[1, 2 * rows, 2 * columns]]
    # 1e-6: as above
    np.testing.assert_allclose(pixels.reshape(-1, 1176), expected["pixel_values"], rtol=0, atol=1e-6)


def test_qwens_defaults_are_its_image_processors() -> None:
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    reference, settings = Qwen2VLImageProcessorPil(), PatchSettings(28, 28)
    assert (tuple(reference.image_mean), tuple(reference.image_std)) == (settings.mean, settings.std)
    assert (reference.patch_size, reference.merge_size, reference.temporal_patch_size) == (14, 2, 2)
    assert settings == PatchSettings(28, 28, patch_px=14, merge=2, frames=2)


# --- properties -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES)
def test_shape_type_and_layout(shape: tuple[int, int]) -> None:
    pixels = preprocess(noise(*shape), ImageSettings(28))
    assert pixels.shape == (3, 28, 28)
    assert pixels.dtype == np.float32
    assert pixels.flags.c_contiguous  # engines take the buffer as it is


def test_an_image_of_the_right_size_is_not_touched() -> None:
    image = noise(28, 56)
    assert np.array_equal(resize(image, (56, 28)), image)
    assert np.array_equal(resize(image[:, :28], 28), image[:, :28])


@pytest.mark.parametrize("shape", SHAPES)
def test_a_tile_need_not_be_square(shape: tuple[int, int]) -> None:
    wide = resize(noise(*shape), (56, 28))
    assert wide.shape == (28, 56, 3)
    if shape[0] == shape[1]:  # width and height are not swapped
        tall = resize(np.ascontiguousarray(noise(*shape).transpose(1, 0, 2)), (28, 56))
        assert np.abs(wide.astype(int) - tall.transpose(1, 0, 2)).max() <= 2  # Pillow rounds between its two passes


def test_patches_hold_every_pixel_in_each_frame() -> None:
    settings = PatchSettings(56, 84)
    pixels = np.arange(3 * 84 * 56, dtype=np.float32).reshape(3, 84, 56)
    made = patches(pixels, settings).reshape(3, 2, 2, 2, 3, 2, 14, 14)  # rows, columns, merge, merge, 3, frames, side, side
    assert np.array_equal(made[..., 0, :, :], made[..., 1, :, :])
    assert np.array_equal(np.unique(made), np.unique(pixels))
    row, column, y, x = 2, 1, 1, 0  # the lower left patch of the token at row 2, column 1
    top, left = row * 28 + y * 14, column * 28 + x * 14
    assert np.array_equal(made[row, column, y, x, :, 0], pixels[:, top : top + 14, left : left + 14])


@pytest.mark.parametrize("value", [0, 128, 255])
def test_a_flat_image_stays_flat_at_the_value_of_the_formula(value: int) -> None:
    settings = ImageSettings(28, mean=(0.1, 0.2, 0.3), std=(0.5, 0.25, 2.0))
    pixels = preprocess(np.full((50, 90, 3), value, np.uint8), settings)
    for channel in range(3):
        expected = (value / 255 - settings.mean[channel]) / settings.std[channel]
        np.testing.assert_allclose(pixels[channel], expected, rtol=0, atol=1e-6)  # fp32 rounding of values up to 3.6


def test_normalising_is_undone_by_its_formula() -> None:
    image, settings = noise(28, 28), ImageSettings(28)
    mean, std = (np.asarray(v)[:, None, None] for v in (settings.mean, settings.std))
    restored = (normalize(image, settings) * std + mean) * 255
    np.testing.assert_allclose(restored.transpose(1, 2, 0), image, atol=1e-4)  # fp32 rounding, of 255


def test_channels_are_red_green_blue() -> None:
    image = np.zeros((10, 10, 3), np.uint8)
    image[..., 0] = 255
    red, green, blue = preprocess(image, ImageSettings(4)).mean((1, 2))
    assert red > 2 > 0 > green > -2.1
    assert -1.9 < blue < 0  # -mean / std tells green (-2.04) from blue (-1.80)


# --- decoding -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["PNG", "BMP"])
def test_lossless_formats_decode_to_the_same_pixels(kind: str) -> None:
    assert np.array_equal(decode_image(encoded(noise(7, 9), kind), "x"), noise(7, 9))


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "1"])
def test_other_colour_modes_become_rgb_of_the_same_brightness(mode: str) -> None:
    grey = np.repeat(noise(8, 8)[..., :1] // 128 * 255, 3, axis=2)  # black and white: every mode can hold it
    buffer = io.BytesIO()
    Image.fromarray(grey).convert(mode).save(buffer, "PNG")
    assert np.array_equal(decode_image(buffer.getvalue(), "x"), grey)


def test_what_alpha_hides_is_still_there() -> None:
    """As transformers' processors take it: simulators write alpha 0 everywhere."""
    pixels = np.dstack([noise(6, 8), np.zeros((6, 8), np.uint8)])
    for kind in ("PNG", "WEBP"):
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, kind, **({"lossless": True, "exact": True} if kind == "WEBP" else {}))
        assert np.array_equal(decode_image(buffer.getvalue(), "x"), noise(6, 8))


@pytest.mark.filterwarnings("error")
def test_a_palette_with_transparent_colours_keeps_them() -> None:
    image = Image.fromarray(noise(6, 8)).quantize(16)
    buffer = io.BytesIO()
    image.save(buffer, "PNG", transparency=bytes(range(0, 160, 10)))
    assert np.array_equal(decode_image(buffer.getvalue(), "x"), np.asarray(image.convert("RGB")))


def test_a_cmyk_jpeg_is_not_a_negative() -> None:
    flat = Image.new("RGB", (16, 16), (200, 40, 90))
    buffer = io.BytesIO()
    flat.convert("CMYK").save(buffer, "JPEG", quality=95)
    # 6 of 255: JPEG at quality 95, in four channels
    np.testing.assert_allclose(decode_image(buffer.getvalue(), "x").astype(int), np.asarray(flat).astype(int), atol=6)


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_an_animation_is_refused_and_one_frame_is_not(kind: str) -> None:
    frames = [Image.fromarray(noise(8, 8, seed)) for seed in range(3)]
    buffer = io.BytesIO()
    frames[0].save(buffer, kind, save_all=True, append_images=frames[1:], duration=50)
    with pytest.raises(DataError, match=r"x: .* is an animation of 3 frames; expected one picture"):
        decode_image(buffer.getvalue(), "x")
    buffer = io.BytesIO()
    frames[0].save(buffer, kind, save_all=True, lossless=True)
    assert decode_image(buffer.getvalue(), "x").shape == (8, 8, 3)


def test_a_jpeg_with_further_pictures_gives_the_main_one() -> None:
    main, preview = (Image.new("RGB", (32, 24), colour) for colour in ("red", "blue"))
    buffer = io.BytesIO()
    main.save(buffer, "MPO", save_all=True, append_images=[preview])
    assert buffer.getvalue().startswith(b"\xff\xd8\xff")
    assert decode_image(buffer.getvalue(), "x").mean((0, 1)).argmax() == 0


# --- orientation ----------------------------------------------------------------------------------------------------


def turned(orientation: object, kind: str = "PNG", image: RGBImage | None = None) -> bytes:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    exif[ExifTags.Base.Make] = "ACME"
    buffer = io.BytesIO()
    Image.fromarray(noise(6, 9) if image is None else image).save(buffer, kind, exif=exif)
    return buffer.getvalue()


# what a viewer does with the stored rows and columns, by the table of Exif 2.32 (tag 274)
STORED_TO_SEEN = {
    1: lambda stored: stored,
    2: lambda stored: stored[:, ::-1],
    3: lambda stored: stored[::-1, ::-1],
    4: lambda stored: stored[::-1],
    5: lambda stored: stored.transpose(1, 0, 2),
    6: lambda stored: np.rot90(stored, -1),
    7: lambda stored: stored[::-1, ::-1].transpose(1, 0, 2),
    8: lambda stored: np.rot90(stored),
}


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "JPEG"])
@pytest.mark.parametrize("orientation", STORED_TO_SEEN)
def test_a_picture_is_turned_as_exif_says(orientation: int, kind: str) -> None:
    flat = np.zeros((16, 32, 3), np.uint8)
    flat[:8, :16] = (250, 10, 10)  # the stored upper left; blocks of 8: JPEG and WebP keep them
    data = turned(orientation, kind, flat)
    expected = STORED_TO_SEEN[orientation](flat).astype(int)
    # 40 of 255: lossy WebP blurs colours where blocks meet
    np.testing.assert_allclose(decode_image(data, "x").astype(int).mean(2), expected.mean(2), atol=40)
    with Image.open(io.BytesIO(data)) as image:
        assert np.array_equal(decode_image(data, "x"), np.asarray(ImageOps.exif_transpose(image).convert("RGB")))


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "JPEG"])
@pytest.mark.parametrize("orientation", [0, *STORED_TO_SEEN])
def test_a_size_is_that_of_the_turned_picture(tmp_path: Path, orientation: int, kind: str) -> None:
    (tmp_path / "a").write_bytes(turned(orientation, kind, np.zeros((16, 32, 3), np.uint8)))
    height, width, _ = load_image(tmp_path / "a").shape
    assert image_size_px(tmp_path / "a") == (width, height)


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_an_orientation_that_means_nothing_turns_nothing(orientation: int) -> None:
    assert np.array_equal(decode_image(turned(orientation), "x"), noise(6, 9))


def test_broken_exif_turns_nothing_and_the_picture_is_read() -> None:
    for exif in (b"Exif\0\0", b"Exif\0\0II*\0\xff\xff\xff\xff", b"nonsense", b"Exif\0\0MM\0*\0\0\0\x08\x7f\xff\x01\x12"):
        buffer = io.BytesIO()
        Image.fromarray(noise(6, 9)).save(buffer, "PNG", exif=exif)
        assert np.array_equal(decode_image(buffer.getvalue(), "x"), noise(6, 9))
    rng, whole = np.random.default_rng(3), turned(6)
    start = whole.index(b"eXIf")
    for _ in range(60):  # every byte of the notes may be anything; their checksum is made right again
        data = bytearray(whole)
        length = int.from_bytes(whole[start - 4 : start], "big")
        for _ in range(3):
            data[start + 4 + rng.integers(length)] = rng.integers(256)
        data[start + 4 + length : start + 8 + length] = zlib.crc32(data[start : start + 4 + length]).to_bytes(4, "big")
        assert decode_image(bytes(data), "x").shape in {(6, 9, 3), (9, 6, 3)}


# --- more than 8 bits -----------------------------------------------------------------------------------------------


def png_of_16_bits(colour_type: int) -> bytes:
    """4x3 px, values up to 4,095 as cameras of 12 bits write them. Pillow cannot write these."""
    channels = {0: 1, 2: 3, 4: 2, 6: 4}[colour_type]
    rows = np.random.default_rng(0).integers(0, 4096, (3, 4 * channels)).astype(">u2")
    header = (4).to_bytes(4, "big") + (3).to_bytes(4, "big") + bytes([16, colour_type, 0, 0, 0])
    pixels = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    return PNG + png_chunk(b"IHDR", header) + png_chunk(b"IDAT", pixels) + png_chunk(b"IEND", b"")


@pytest.mark.parametrize("colour_type", [0, 2, 4, 6], ids=["grey", "RGB", "grey and alpha", "RGBA"])
def test_a_png_of_16_bits_is_refused_and_not_read_as_8(colour_type: int) -> None:
    data = png_of_16_bits(colour_type)
    with Image.open(io.BytesIO(data)) as image:
        image.load()  # a good PNG: Pillow reads it without a word
    with pytest.raises(DataError, match=r"x: image has more than 8 bits a channel .PNG of 16 bits.; convert it to 8 bits"):
        decode_image(data, "x")
    hidden = PNG + png_chunk(b"tEXt", b"a\0b") + data[len(PNG) :]  # behind another chunk
    with pytest.raises(DataError, match="more than 8 bits"):
        decode_image(hidden, "x")


def test_a_jpeg_of_12_bits_is_refused_by_its_own_header() -> None:
    data = bytearray(encoded(noise(16, 16), "JPEG"))
    frame = data.index(b"\xff\xc0")
    data[frame + 4] = 12
    data[2:2] = b"\xff\xff\xfe\0\x06\xff\xc0\x09\x08"  # a comment that looks like a header of 8 bits, behind a fill byte
    with pytest.raises(DataError, match=r"more than 8 bits a channel .JPEG of 12 bits."):
        decode_image(bytes(data), "x")


def test_a_file_and_its_bytes_give_the_same_image(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(encoded(noise(20, 30), "JPEG"))
    assert np.array_equal(load_image(tmp_path / "a.jpg"), decode_image((tmp_path / "a.jpg").read_bytes(), "x"))


# --- bad images -----------------------------------------------------------------------------------------------------


def png_that_claims(width: int, height: int) -> bytes:
    """A PNG header of any size; the check must come before a pixel is decoded."""
    header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + b"\x08\x02\x00\x00\x00"
    return PNG + png_chunk(b"IHDR", header) + png_chunk(b"IDAT", b"")


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")


BAD = {
    "empty": (b"", "empty"),
    "text": (b"not an image at all", "not an image"),
    "two letters that begin a BMP": (b"BMW and Audi", "not an image.*text .'BMW and Audi'."),
    "TIFF": (encoded(noise(8, 8), "TIFF"), "not an image.*TIFF"),
    "GIF": (encoded(noise(8, 8), "GIF"), "not an image.*GIF"),
    "truncated WebP": (encoded(noise(64, 64), "WEBP")[:900], "WEBP image is truncated"),
    "truncated BMP": (encoded(noise(64, 64), "BMP")[:900], "BMP image is truncated"),
    "the first bytes of a PNG": (PNG, "PNG image is truncated or broken .8 bytes."),
    "truncated JPEG": (encoded(noise(64, 64), "JPEG")[:900], "truncated"),
    "truncated PNG": (encoded(noise(64, 64))[:900], "truncated"),
    "too large": (png_that_claims(MAX_IMAGE_PIXELS // 1000 + 1, 1000), "larger than 64,000,000"),
    "bomb": (png_that_claims(100_000, 100_000), "larger than 64,000,000"),
}


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize(("data", "words"), BAD.values(), ids=BAD)
def test_a_bad_image_is_named_with_what_is_wrong(tmp_path: Path, data: bytes, words: str) -> None:
    path = tmp_path / "CAM_FRONT.jpg"
    path.write_bytes(data)
    with pytest.raises(DataError, match=words) as caught:
        load_image(path)
    assert str(caught.value).startswith(f"{path}: ")


def test_a_missing_file_and_a_folder_are_named(tmp_path: Path) -> None:
    for path in (tmp_path / "none.png", tmp_path):
        for read in (load_image, image_size_px):
            with pytest.raises(DataError, match="cannot be read") as caught:
                read(path)
            assert str(path) in str(caught.value)


def test_a_file_without_an_end_is_not_read_to_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "MAX_IMAGE_BYTES", 10_000)
    with pytest.raises(DataError, match="more than 10,000 bytes, by their beginning nothing but zeros"):
        load_image(Path("/dev/zero"))
    (tmp_path / "long.png").write_bytes(encoded(noise(8, 8)) + bytes(20_000))
    with pytest.raises(DataError, match=r"long.png: PNG image is larger than 10,000 bytes"):
        load_image(tmp_path / "long.png")


def test_a_name_with_a_zero_in_it_is_an_error_like_others() -> None:
    with pytest.raises(DataError, match="embedded null byte"):
        load_image(Path("a\0.png"))


@pytest.mark.filterwarnings("ignore")  # Pillow warns of what it skips
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "MPO"])
def test_no_damage_raises_anything_but_a_data_error(tmp_path: Path, kind: str) -> None:
    rng = np.random.default_rng(1)
    whole = encoded(noise(24, 40), kind)
    for _ in range(60):
        data = bytearray(whole[: rng.integers(1, len(whole) + 1)])
        for _ in range(4):
            data[rng.integers(0, min(len(data), rng.choice([40, len(whole)])))] = rng.integers(0, 256)
        (tmp_path / "damaged").write_bytes(data)
        with contextlib.suppress(DataError):  # anything else fails the test
            image_size_px(tmp_path / "damaged")
        with contextlib.suppress(DataError):
            image = decode_image(bytes(data), "CAM_BACK")
            assert check_image(image, "CAM_BACK") is image


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.zeros((0, 5, 3), np.uint8), "size zero"),
        (np.zeros((5, 0, 3), np.uint8), "size zero"),
        (np.zeros((5, 5), np.uint8), r"uint8 \[5, 5\]"),
        (np.zeros((5, 5, 4), np.uint8), r"\[5, 5, 4\]"),
        (np.zeros((3, 5, 5), np.uint8), r"\[3, 5, 5\]"),
        (np.zeros((5, 5, 3), np.float32), "float32"),
    ],
)
def test_an_array_that_is_no_rgb_image_is_refused(array: RGBImage, words: str) -> None:
    with pytest.raises(DataError, match=words) as caught:
        check_image(array, "camera 2")
    assert str(caught.value).startswith("camera 2: ")


def test_a_good_array_passes_unchanged() -> None:
    image = noise(4, 5)
    assert check_image(image, "x") is image
