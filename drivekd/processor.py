"""Reads what turns images and text into model inputs from a checkpoint in the Hugging Face layout; imports no torch.

config.json               image_token_id, image_seq_length, vision_config.image_size
tokenizer.json            the tokenizer itself
tokenizer_config.json     names of the image tokens, and the chat template where chat_template.jinja is missing
chat_template.jinja
preprocessor_config.json  size, mean, std
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from tokenizers import Tokenizer

from drivekd.chat import ChatFormat, PromptEncoder, chat_format_from_template
from drivekd.errors import CheckpointError
from drivekd.images import ImageSettings

Value = TypeVar("Value")


@dataclass(frozen=True)
class Processor:
    """images: how pixels are made; chat: how prompts are made; prompts: the encoder over both tokenizer and chat."""

    images: ImageSettings
    chat: ChatFormat
    prompts: PromptEncoder
    tokenizer: Tokenizer


def load_processor(checkpoint: Path) -> Processor:
    """Read a checkpoint's processor. Raises CheckpointError naming the missing or wrong file."""
    config = read_checkpoint_json(checkpoint, "config.json")
    tokenizer = load_tokenizer(checkpoint)
    tokenizer_config = read_checkpoint_json(checkpoint, "tokenizer_config.json")
    chat = chat_format_from_template(
        _chat_template(checkpoint, tokenizer_config),
        image_token=_image_token(checkpoint, tokenizer, config, tokenizer_config),
        image_start=tokenizer_config.get("start_image_token", "<img>"),
        image_end=tokenizer_config.get("end_image_token", "</img>"),
        tokens_per_image=_required(config, "image_seq_length", int, checkpoint / "config.json"),
        source=str(checkpoint),
    )
    return Processor(_image_settings(checkpoint, config), chat, PromptEncoder(tokenizer, chat), tokenizer)


def load_tokenizer(checkpoint: Path) -> Tokenizer:
    """Read tokenizer.json. Raises CheckpointError."""
    path = checkpoint / "tokenizer.json"
    if not path.is_file():
        raise CheckpointError(f"{checkpoint}: tokenizer.json is missing; a checkpoint needs its tokenizer beside the weights")
    return parse_tokenizer(path.read_bytes(), str(path))


def parse_tokenizer(data: bytes, source: str) -> Tokenizer:
    """The tokenizer in the bytes of a tokenizer.json. Raises CheckpointError naming `source`."""
    try:
        return Tokenizer.from_str(data.decode())
    except Exception as error:  # tokenizers raises bare Exception for every malformed file
        raise CheckpointError(f"{source}: not a tokenizer file ({error})") from error


def read_checkpoint_json(checkpoint: Path, name: str) -> dict[str, Any]:
    """Read one JSON object of a checkpoint directory. Raises CheckpointError."""
    path = checkpoint / name
    if not checkpoint.is_dir():
        raise CheckpointError(f"{checkpoint}: no such checkpoint directory")
    try:
        value = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise CheckpointError(f"{checkpoint}: {name} is missing; expected a checkpoint in the Hugging Face layout") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path}: not valid JSON ({error})") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: expected a JSON object")
    return value


def _chat_template(checkpoint: Path, tokenizer_config: dict[str, Any]) -> str:
    path = checkpoint / "chat_template.jinja"
    if path.is_file():
        return path.read_text()
    template = tokenizer_config.get("chat_template")
    if not isinstance(template, str):
        raise CheckpointError(f"{checkpoint}: no chat_template.jinja and no chat_template in tokenizer_config.json")
    return template


def _image_token(checkpoint: Path, tokenizer: Tokenizer, config: dict[str, Any], tokenizer_config: dict[str, Any]) -> str:
    token = tokenizer_config.get("context_image_token", "<IMG_CONTEXT>")
    if tokenizer.token_to_id(token) != config.get("image_token_id"):
        raise CheckpointError(
            f"{checkpoint}: config.json says image_token_id {config.get('image_token_id')}, "
            f"but the tokenizer gives {token!r} the id {tokenizer.token_to_id(token)}"
        )
    return str(token)


def _image_settings(checkpoint: Path, config: dict[str, Any]) -> ImageSettings:
    preprocessor = read_checkpoint_json(checkpoint, "preprocessor_config.json")
    size = _required(preprocessor, "size", dict, checkpoint / "preprocessor_config.json")
    height, width = size.get("height"), size.get("width")
    if not isinstance(height, int) or height != width:
        raise CheckpointError(f"{checkpoint}/preprocessor_config.json: expected a square size in pixels, got {size}")
    vision_size = _required(config, "vision_config", dict, checkpoint / "config.json").get("image_size")
    if vision_size not in (height, [height, width]):
        raise CheckpointError(
            f"{checkpoint}: preprocessor_config.json makes {height} px tiles, config.json's vision tower takes {vision_size}"
        )
    mean, std = (
        _required(preprocessor, key, list, checkpoint / "preprocessor_config.json") for key in ("image_mean", "image_std")
    )
    return ImageSettings(height, tuple(mean), tuple(std))


def _required(values: dict[str, Any], key: str, kind: type[Value], path: Path) -> Value:
    value = values.get(key)
    if not isinstance(value, kind):
        raise CheckpointError(f"{path}: expected {key} to be a {kind.__name__}, found {value!r}")
    return value
