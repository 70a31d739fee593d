"""A picture in several tiles: equal to InternVL's own processor wherever that one chooses the same grid, prompts included."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tiny_run import TinyRun

from drivekd.errors import CheckpointError, ConfigError
from drivekd.hf_checkpoint import load_processor, stated_tiles, write_processor
from drivekd.images import ImageSettings, RGBImage, TiledSettings, pixel_values, preprocess, tiles_of

SIZE_PX = 56
# The picture's shape decides transformers' grid. max_patches: what keeps it from a larger one of the same shape.
CHOSEN = [((90, 160), 2, "2x1"), ((900, 1600), 2, "2x1"), ((160, 90), 2, "1x2"), ((300, 310), 4, "2x2"), ((40, 121), 3, "3x1")]
CHOSEN += [((200, 302), 6, "3x2"), ((211, 837), 12, "4x1"), ((300, 400), 12, "4x3"), ((1, 9), 12, "9x1")]


def noise(height: int, width: int, seed: int = 0) -> RGBImage:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def reference(max_patches: int) -> Any:
    from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil

    mean, std = ImageSettings.mean, ImageSettings.std
    size = {"height": SIZE_PX, "width": SIZE_PX}
    return GotOcr2ImageProcessorPil(
        size=size, image_mean=list(mean), image_std=list(std), crop_to_patches=True, max_patches=max_patches
    )


@pytest.mark.parametrize(("shape", "max_patches", "tiles"), CHOSEN)
def test_equal_to_transformers_pil_processor(shape: tuple[int, int], max_patches: int, tiles: str) -> None:
    image = noise(*shape)
    found = reference(max_patches)(images=Image.fromarray(image), return_tensors="np")
    settings = TiledSettings(SIZE_PX, tiles=f"{tiles}+thumbnail")
    pixels = preprocess(image, settings)
    assert pixels.shape == settings.pixel_shape == (int(found["num_patches"][0]), 3, SIZE_PX, SIZE_PX)
    assert pixels.dtype == np.float32
    assert pixels.flags.c_contiguous
    # 1e-6: the pixels are equal; v * (1/255) is rounded to fp32 here and there at another place (2 ulp of 2.6)
    np.testing.assert_allclose(pixels, found["pixel_values"], rtol=0, atol=1e-6)


@pytest.mark.parametrize("tiles", ["2x1", "1x2", "3x2", "4x3"])
def test_the_grid_is_there_without_its_thumbnail(tiles: str) -> None:
    image, settings = noise(61, 107), TiledSettings(28, tiles=tiles)
    with_thumbnail = replace(settings, tiles=f"{tiles}+thumbnail")
    whole = preprocess(image, with_thumbnail)
    assert np.array_equal(preprocess(image, settings), whole[:-1])
    assert np.array_equal(preprocess(image, ImageSettings(28)), whole[-1])
    assert np.array_equal(tiles_of(image, settings), tiles_of(image, with_thumbnail)[:-28])


@pytest.mark.parametrize("tiles", ["2x1", "3x2+thumbnail"])
def test_two_steps_give_the_same(tiles: str) -> None:
    """uint8 in between: what a camera shows is compared there, and what was seen is kept there."""
    image, settings = noise(61, 107), TiledSettings(28, tiles=tiles)
    held = tiles_of(image, settings)
    assert held.dtype == np.uint8
    assert held.shape[1::-1] == settings.tiles_px == (28, 28 * settings.tiling.num_tiles)
    assert np.array_equal(pixel_values(held, settings), preprocess(image, settings))


def test_a_picture_that_is_not_yet_cut_is_no_input() -> None:
    """The same number of pixels: 56 x 28 beside each other or one below the other."""
    settings = TiledSettings(28, tiles="2x1")
    with pytest.raises(AssertionError, match=r"expected the tiles of an image, \[56, 28, 3\], got \[28, 56, 3\]"):
        pixel_values(noise(28, 56), settings)


def test_one_tile_is_as_it_was() -> None:
    settings = ImageSettings(28)
    assert (settings.tile_px, settings.tiles_px, settings.pixel_shape) == ((28, 28), (28, 28), (3, 28, 28))
    assert str(settings.tiling) == "1x1"


# --- prompts --------------------------------------------------------------------------------------------------------


@pytest.fixture
def student(tiny_run: TinyRun, tmp_path: Path) -> Path:
    """A copy, to write into."""
    shutil.copytree(tiny_run.student, tmp_path / "student")
    return tmp_path / "student"


@pytest.mark.parametrize(("shape", "max_patches", "tiles"), CHOSEN[:4])
@pytest.mark.parametrize("num_images", [1, 2])
def test_prompts_are_internvls_own(
    tiny_run: TinyRun, shape: tuple[int, int], max_patches: int, tiles: str, num_images: int
) -> None:
    """Its processor as a whole wants torchvision; what it writes for an image is taken from it."""
    from transformers import InternVLProcessor, PreTrainedTokenizerFast

    processor = load_processor(tiny_run.student, tiles=f"{tiles}+thumbnail")
    pictures = [Image.fromarray(noise(*shape, seed)) for seed in range(num_images)]
    found = reference(max_patches)(images=pictures, return_tensors="np")
    tokens = SimpleNamespace(start_image_token="<img>", end_image_token="</img>", image_token="<IMG_CONTEXT>", image_seq_length=4)
    user = {"role": "user", "content": [*([{"type": "image"}] * num_images), {"type": "text", "text": "What colour is it?"}]}
    tokenizer = PreTrainedTokenizerFast.from_pretrained(tiny_run.student)
    pieces = tokenizer.apply_chat_template([user], tokenize=False, add_generation_prompt=True).split("<IMG_CONTEXT>")
    shown = [InternVLProcessor.replace_image_token(tokens, found, index) for index in range(num_images)]
    text = "".join(piece + image for piece, image in zip(pieces, [*shown, ""], strict=True))
    expected = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert [*processor.prompts.prefix(num_images), *processor.prompts.suffix("What colour is it?")] == expected


# --- which tiles a checkpoint has -----------------------------------------------------------------------------------


def test_a_checkpoint_that_says_nothing_has_one_tile(student: Path) -> None:
    processor = load_processor(student)
    assert stated_tiles(load_checkpoint(student)) is None
    assert processor.images == ImageSettings(SIZE_PX)
    assert load_processor(student, tiles="1x1").images == processor.images
    assert processor.chat.tokens_per_image == 4
    assert load_processor(student, tiles="3x2+thumbnail").chat.tokens_per_image == 28


def load_checkpoint(folder: Path) -> Any:
    from drivekd.hf_checkpoint import Checkpoint

    return Checkpoint.open(folder)


@pytest.mark.parametrize("tiles", ["1x1", "2x1", "2x1+thumbnail"])
def test_what_was_written_is_read_and_may_be_overruled(student: Path, tmp_path: Path, tiles: str) -> None:
    target = tmp_path / "written"
    target.mkdir()
    write_processor(student, target, tiles=tiles)
    shutil.copy(student / "config.json", target)
    assert stated_tiles(load_checkpoint(target)) == tiles
    assert str(load_processor(target).images.tiling) == tiles
    assert str(load_processor(target, tiles="1x2").images.tiling) == "1x2"


@pytest.mark.parametrize("tiles", ["2by1", "4x4", ""])
def test_a_wrong_word_names_who_said_it(student: Path, tiles: str) -> None:
    with pytest.raises(ConfigError, match=r"^tiles: .*(expected columns x rows|at most 12)"):
        load_processor(student, tiles=tiles)
    (student / "camera.json").write_text(json.dumps({"tiles": tiles}), encoding="utf-8")
    with pytest.raises(CheckpointError, match=rf"{re.escape(str(student / 'camera.json'))}: tiles: "):
        load_processor(student)
    (student / "camera.json").write_text(json.dumps({"tiles": [2, 1]}), encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"camera\.json: expected tiles to be a str, found \[2, 1\]"):
        load_processor(student)


def test_qwen_is_told_to_take_a_larger_picture(tiny_qwen_run: TinyRun) -> None:
    with pytest.raises(ConfigError, match=r"tiles is 2x1, but .* is Qwen2\.5-VL.*data\.camera_size_px"):
        load_processor(tiny_qwen_run.student, tiles="2x1")
    assert load_processor(tiny_qwen_run.student, tiles="1x1").images == load_processor(tiny_qwen_run.student).images


def test_a_configuration_names_key_and_value(tiny_run: TinyRun) -> None:
    with pytest.raises(ConfigError, match=r"data\.tiles = '2x': expected columns x rows such as 1x1, 2x1 or 2x1\+thumbnail"):
        tiny_run.config("data.tiles=2x")
    assert tiny_run.config("data.tiles=3x2+thumbnail").data.tiles == "3x2+thumbnail"
    assert tiny_run.config().data.tiles is None
