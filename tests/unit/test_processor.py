"""A checkpoint's processor files: read right, and each fault named with its file."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_run import TinyRun

from drivekd.errors import CheckpointError
from drivekd.images import ImageSettings
from drivekd.models.tiny import CHAT_TEMPLATE
from drivekd.processor import load_processor

PROCESSOR_FILES = ("config.json", "tokenizer.json", "tokenizer_config.json", "preprocessor_config.json", "chat_template.jinja")


@pytest.fixture
def checkpoint(tiny_run: TinyRun, tmp_path: Path) -> Path:
    """The student's processor files without its weights: nothing here needs them."""
    folder = tmp_path / "model"
    folder.mkdir()
    for name in PROCESSOR_FILES:
        shutil.copy(tiny_run.student / name, folder / name)
    return folder


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
