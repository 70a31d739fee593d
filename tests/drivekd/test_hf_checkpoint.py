"""A checkpoint's processor files: read right, and each fault named with its file."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from opened_files import watched_opens
from tiny_run import TinyRun

from drivekd.errors import CheckpointError, ConfigError, UsageError
from drivekd.hf_checkpoint import DEFAULT_CAMERA_SIZE_PX, Checkpoint, load_processor, write_processor
from drivekd.images import ImageSettings, PatchSettings
from drivekd.models.tiny import (
    CHAT_TEMPLATE,
    QWEN_CHAT_TEMPLATE,
    QWEN_SPECIAL_TOKENS,
    TinySize,
    build_tiny_qwen,
    train_tokenizer,
    write_checkpoint,
)
from drivekd.processor import mrope_positions

PROCESSOR_FILES = ("config.json", "tokenizer.json", "tokenizer_config.json", "preprocessor_config.json", "chat_template.jinja")


@pytest.fixture
def checkpoint(tiny_run: TinyRun, tmp_path: Path) -> Path:
    """The student's processor files without its weights: nothing here needs them."""
    folder = tmp_path / "model"
    folder.mkdir()
    for name in PROCESSOR_FILES:
        shutil.copy(tiny_run.student / name, folder / name)
    return folder


@pytest.fixture(scope="module")
def qwen_written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("qwen") / "model"
    tokenizer = train_tokenizer(["What is it?"] * 20, [], 400, special_tokens=QWEN_SPECIAL_TOKENS)
    size = TinySize(vision_layers=1, vision_width=32, language_layers=1, language_width=32)
    write_checkpoint(folder, build_tiny_qwen(size, tokenizer, seed=0), tokenizer, camera_size_px=(112, 84))
    return folder


@pytest.fixture
def qwen(qwen_written: Path, tmp_path: Path) -> Path:
    """A Qwen2.5-VL checkpoint's processor files."""
    return Path(shutil.copytree(qwen_written, tmp_path / "qwen", ignore=shutil.ignore_patterns("*.safetensors")))


def edit(checkpoint: Path, name: str, change: Callable[[dict[str, Any]], object]) -> None:
    tree = json.loads((checkpoint / name).read_text())
    change(tree)
    (checkpoint / name).write_text(json.dumps(tree))


def message(checkpoint: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        load_processor(checkpoint)
    return str(caught.value)


def test_everything_is_read(checkpoint: Path) -> None:
    processor = load_processor(checkpoint)
    assert processor.images == ImageSettings(56, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert processor.chat.tokens_per_image == 4
    assert processor.prompts.image_token_id == processor.tokenizer.token_to_id("<IMG_CONTEXT>")


def test_every_file_is_read_once_however_often_a_checkpoint_is_used(checkpoint: Path, qwen: Path) -> None:
    for folder in (checkpoint, qwen):
        with watched_opens() as opened:
            used = Checkpoint.open(folder)
            for _ in range(2):
                load_processor(used)
            assert Checkpoint.open(used) is used
        names = sorted(path.name for path in opened if path.parent == folder and path.suffix == ".json")
        assert "config.json" in names
        assert names == sorted(set(names))


def test_the_template_may_be_within_tokenizer_config(checkpoint: Path) -> None:
    expected = load_processor(checkpoint).chat
    (checkpoint / "chat_template.jinja").unlink()
    edit(checkpoint, "tokenizer_config.json", lambda tree: tree.update(chat_template=CHAT_TEMPLATE))
    assert load_processor(checkpoint).chat == expected


def test_the_towers_size_may_be_one_number(checkpoint: Path) -> None:
    edit(checkpoint, "config.json", lambda tree: tree["vision_config"].update(image_size=56))
    assert load_processor(checkpoint).images.size_px == 56


@pytest.mark.parametrize("name", PROCESSOR_FILES)
def test_a_missing_file_is_named(checkpoint: Path, name: str) -> None:
    (checkpoint / name).unlink()
    text = message(checkpoint)
    assert str(checkpoint) in text
    assert name in text


@pytest.mark.parametrize("name", [name for name in PROCESSOR_FILES if name.endswith(".json")])
@pytest.mark.parametrize("content", [b'{"model": ', b"\xff\xfe\x00", b"[]", b""])
def test_a_broken_file_is_named(checkpoint: Path, name: str, content: bytes) -> None:
    (checkpoint / name).write_bytes(content)
    assert message(checkpoint).startswith(str(checkpoint / name))


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    assert message(tmp_path / "none") == f"{tmp_path / 'none'}: no such checkpoint directory"


def test_a_broken_template_is_named_with_its_checkpoint(checkpoint: Path) -> None:
    (checkpoint / "chat_template.jinja").write_text("{{ messages[0]['content'][2]['text'] }}<IMG_CONTEXT><IMG_CONTEXT>")
    assert message(checkpoint).startswith(f"{checkpoint}: the chat template")


def test_an_image_token_id_of_another_tokenizer_is_refused(checkpoint: Path) -> None:
    edit(checkpoint, "config.json", lambda tree: tree.update(image_token_id=151667))
    text = message(checkpoint)
    assert text.startswith(f"{checkpoint}: config.json says image_token_id 151667")
    assert "'<IMG_CONTEXT>' the id 5" in text


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("config.json", lambda tree: tree.pop("image_seq_length"), "image_seq_length"),
        ("config.json", lambda tree: tree.pop("vision_config"), "vision_config"),
        ("preprocessor_config.json", lambda tree: tree.pop("image_mean"), "image_mean"),
        ("preprocessor_config.json", lambda tree: tree.update(image_std=0.5), "image_std"),
        ("preprocessor_config.json", lambda tree: tree.pop("size"), "size"),
        ("preprocessor_config.json", lambda tree: tree.update(size=448), "size"),
        ("preprocessor_config.json", lambda tree: tree.update(size={"shortest_edge": 56}), "square size in pixels"),
        ("preprocessor_config.json", lambda tree: tree.update(size={"height": 56, "width": 112}), "square size in pixels"),
    ],
)
def test_a_missing_or_wrong_value_is_named_with_its_file(
    checkpoint: Path, name: str, change: Callable[[dict[str, Any]], object], words: str
) -> None:
    edit(checkpoint, name, change)
    text = message(checkpoint)
    assert text.startswith(str(checkpoint / name))
    assert words in text


def test_tiles_that_the_tower_does_not_take_are_refused(checkpoint: Path) -> None:
    edit(checkpoint, "preprocessor_config.json", lambda tree: tree.update(size={"height": 112, "width": 112}))
    assert message(checkpoint) == (
        f"{checkpoint}: preprocessor_config.json makes 112 px tiles, config.json's vision tower takes [56, 56]"
    )


def test_image_settings_may_be_nested_in_processor_config(checkpoint: Path, qwen: Path) -> None:
    """transformers 5 saves a processor in one file."""
    for folder in (checkpoint, qwen):
        expected = load_processor(folder).images
        settings = json.loads((folder / "preprocessor_config.json").read_text())
        (folder / "preprocessor_config.json").unlink()
        (folder / "processor_config.json").write_text(json.dumps({"processor_class": "X", "image_processor": settings}))
        assert load_processor(folder).images == expected


def test_a_fault_in_processor_config_is_named_with_that_file(checkpoint: Path) -> None:
    (checkpoint / "preprocessor_config.json").unlink()
    (checkpoint / "processor_config.json").write_text(json.dumps({"image_seq_length": 4}))
    assert message(checkpoint).startswith(f"{checkpoint / 'processor_config.json'}: expected image_processor")


def test_what_transformers_saves_is_read(checkpoint: Path) -> None:
    from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil

    expected = load_processor(checkpoint).images
    (checkpoint / "preprocessor_config.json").unlink()
    size = {"height": 56, "width": 56}
    saved = GotOcr2ImageProcessorPil(size=size, image_mean=list(expected.mean), image_std=list(expected.std)).to_dict()
    (checkpoint / "processor_config.json").write_text(json.dumps({"image_processor": saved}, default=str))
    assert load_processor(checkpoint).images == expected


@pytest.mark.parametrize("size_px", [(112, 56), (56, 112), (28, 28)])
def test_internvl_has_no_camera_size_of_its_own(checkpoint: Path, size_px: tuple[int, int]) -> None:
    with pytest.raises(ConfigError, match=f"camera_size_px is {size_px[0]}x{size_px[1]} px, .* whose tiles are 56x56 px"):
        load_processor(checkpoint, camera_size_px=size_px)
    assert load_processor(checkpoint, camera_size_px=(56, 56)) is not None


# --- Qwen2.5-VL -----------------------------------------------------------------------------------------------------


def test_everything_of_qwen_is_read(qwen: Path) -> None:
    processor = load_processor(qwen)
    assert processor.model_type == "qwen2_5_vl"
    assert processor.images == PatchSettings(112, 84)
    assert processor.chat.tokens_per_image == 12
    assert processor.prompts.image_token_id == processor.tokenizer.token_to_id("<|image_pad|>")
    image = np.random.default_rng(0).integers(0, 256, (90, 160, 3), dtype=np.uint8)
    resized = processor.resize(image)
    assert resized.shape == (84, 112, 3)
    assert processor.normalize(resized).shape == processor.images.pixel_shape == (3, 4, 4, 1176)


def test_the_camera_is_the_argument_else_the_file_else_the_default(qwen: Path) -> None:
    assert load_processor(qwen, camera_size_px=(56, 140)).images.tile_px == (56, 140)
    assert load_processor(qwen).images.tile_px == (112, 84)
    (qwen / "camera.json").unlink()
    processor = load_processor(qwen)
    assert processor.images.tile_px == DEFAULT_CAMERA_SIZE_PX == (588, 336)
    assert processor.chat.tokens_per_image == 252


@pytest.mark.parametrize("size_px", [(589, 336), (588, 335), (14, 28), (28, 0), (-28, 28)])
def test_a_camera_that_tokens_do_not_tile_is_refused(qwen: Path, size_px: tuple[int, int]) -> None:
    with pytest.raises(ConfigError, match=f"width {size_px[0]} and height {size_px[1]} must be multiples of 28 px"):
        load_processor(qwen, camera_size_px=size_px)
    (qwen / "camera.json").write_text(json.dumps({"width_px": size_px[0], "height_px": size_px[1]}))
    assert message(qwen).startswith(str(qwen / "camera.json"))


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("camera.json", lambda tree: tree.pop("width_px"), "width_px"),
        ("camera.json", lambda tree: tree.update(height_px="84"), "height_px"),
        ("config.json", lambda tree: tree.pop("vision_start_token_id"), "vision_start_token_id"),
        ("config.json", lambda tree: tree["vision_config"].pop("spatial_merge_size"), "spatial_merge_size"),
        ("preprocessor_config.json", lambda tree: tree.pop("merge_size"), "merge_size"),
        ("preprocessor_config.json", lambda tree: tree.pop("image_std"), "image_std"),
    ],
)
def test_a_missing_or_wrong_value_of_qwen_is_named(
    qwen: Path, name: str, change: Callable[[dict[str, Any]], object], words: str
) -> None:
    edit(qwen, name, change)
    text = message(qwen)
    assert text.startswith(str(qwen / name))
    assert words in text


def test_patches_that_the_tower_does_not_take_are_refused(qwen: Path) -> None:
    edit(qwen, "preprocessor_config.json", lambda tree: tree.update(patch_size=16))
    assert message(qwen) == f"{qwen}: preprocessor_config.json says patch_size 16, config.json's vision tower has patch_size 14"


def test_a_token_id_that_the_tokenizer_lacks_is_refused(qwen: Path) -> None:
    edit(qwen, "config.json", lambda tree: tree.update(image_token_id=151655))
    assert message(qwen) == f"{qwen}: config.json says image_token_id 151655, but the tokenizer has no such token"


def test_the_template_may_be_in_a_file_of_the_older_layout(qwen: Path) -> None:
    expected = load_processor(qwen).chat
    (qwen / "chat_template.jinja").unlink()
    (qwen / "chat_template.json").write_text(json.dumps({"chat_template": QWEN_CHAT_TEMPLATE}))
    assert load_processor(qwen).chat == expected


def test_another_model_type_is_refused_with_the_known_ones(qwen: Path) -> None:
    edit(qwen, "config.json", lambda tree: tree.update(model_type="llava"))
    text = message(qwen)
    assert all(f"'{name}'" in text for name in ("llava", "internvl", "internvl_chat", "qwen2_5_vl"))


def test_an_image_cut_short_has_no_positions() -> None:
    with pytest.raises(UsageError, match="the image at token 1 of the prompt has fewer tokens than 2 x 3"):
        mrope_positions([7, 5, 5, 5, 5, 5], 5, (2, 3))


def test_positions_of_a_hand_computed_prompt() -> None:
    """text, image of 2 x 3, two texts: the image's rows and columns count from 1, the text goes on behind its 3 columns."""
    expected = [[0, 1, 1, 1, 1, 1, 1, 4, 5], [0, 1, 1, 1, 2, 2, 2, 4, 5], [0, 1, 2, 3, 1, 2, 3, 4, 5]]
    assert mrope_positions([7, *[5] * 6, 8, 9], 5, (2, 3)).tolist() == expected


@pytest.mark.parametrize("camera_size_px", [None, (56, 140)])
def test_a_written_processor_is_the_one_that_was_read(
    checkpoint: Path, qwen: Path, tmp_path: Path, camera_size_px: tuple[int, int] | None
) -> None:
    for source in (checkpoint, qwen):
        size_px = camera_size_px if source == qwen else None
        target = tmp_path / f"{source.name} written"
        target.mkdir()
        write_processor(source, target, camera_size_px=size_px)
        shutil.copy(source / "config.json", target)  # weights and configuration are the model's to write
        ours, theirs = load_processor(target), load_processor(source, camera_size_px=size_px)
        assert (ours.model_type, ours.images, ours.chat) == (theirs.model_type, theirs.images, theirs.chat)
        assert ours.tokenizer.to_str() == theirs.tokenizer.to_str()
        assert (target / "camera.json").exists() == (source == qwen)


def test_somebodys_truncation_and_padding_are_not_ours(checkpoint: Path, tmp_path: Path) -> None:
    """As save_pretrained leaves them behind after a call on a batch."""
    from transformers import PreTrainedTokenizerFast

    question = "What should the ego vehicle do next, and why? Options: A. Red. B. Green. C. Blue."
    before, short = (load_processor(checkpoint).prompts.suffix(text) for text in (question, "Why?"))
    theirs = PreTrainedTokenizerFast(tokenizer_file=str(checkpoint / "tokenizer.json"), pad_token="<|im_end|>")
    theirs([question, "Why?"], truncation=True, max_length=12, padding="max_length")
    theirs.save_pretrained(tmp_path / "theirs")
    shutil.copy(tmp_path / "theirs" / "tokenizer.json", checkpoint / "tokenizer.json")
    stored = json.loads((checkpoint / "tokenizer.json").read_text(encoding="utf-8"))
    assert stored["truncation"]["max_length"] == stored["padding"]["strategy"]["Fixed"] == 12
    assert len(before) > 12
    assert load_processor(checkpoint).prompts.suffix(question) == before
    assert load_processor(checkpoint).prompts.suffix("Why?") == short
    (tmp_path / "copy").mkdir()
    write_processor(checkpoint, tmp_path / "copy")
    written = json.loads((tmp_path / "copy" / "tokenizer.json").read_text(encoding="utf-8"))
    assert (written["truncation"], written["padding"]) == (None, None), "others read it, too"
    assert written["model"] == stored["model"]
    assert written["added_tokens"] == stored["added_tokens"]
