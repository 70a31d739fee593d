"""A checkpoint in the Hugging Face layout, read for its processor (images and text to model inputs). Imports no torch.

config.json               model_type, ids of the image tokens, the vision tower's sizes
tokenizer.json            the tokenizer itself
tokenizer_config.json     names of the image tokens, and the chat template where it has no file of its own
chat_template.jinja       or chat_template.json
preprocessor_config.json  size, mean, std; or within processor_config.json, where transformers 5 writes them
camera.json               width_px and height_px of Qwen2.5-VL's camera tile, in checkpoints that drivekd wrote
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, TypeVar

from tokenizers import Tokenizer

from drivekd import internvl_chat
from drivekd.chat import PromptEncoder, chat_format_from_template
from drivekd.errors import CheckpointError, ConfigError
from drivekd.images import ImageSettings, PatchSettings

from .processor import INTERNVL, QWEN2_5_VL, Processor, parse_tokenizer

INTERNVL_CHAT = "internvl_chat"  # InternVL's original layout; read as INTERNVL
CAMERA_FILE = "camera.json"
DEFAULT_CAMERA_SIZE_PX = (588, 336)  # width, height: 12 x 21 = 252 tokens, about InternVL's 256, at a camera's 16:9
_PROCESSOR_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    "preprocessor_config.json",
    "processor_config.json",
    "video_preprocessor_config.json",
    "generation_config.json",
)
Value = TypeVar("Value")


def load_processor(checkpoint: Path, *, camera_size_px: tuple[int, int] | None = None) -> Processor:
    """Read a checkpoint's processor. Raises CheckpointError naming the missing or wrong file.

    camera_size_px: Qwen2.5-VL's camera tile, width and height; None: the checkpoint's camera.json, else DEFAULT_CAMERA_SIZE_PX.
    Raises ConfigError when the family cannot take it.
    """
    config = read_config(checkpoint)
    tokenizer = load_tokenizer(checkpoint)
    if config["model_type"] == QWEN2_5_VL:
        return _qwen_processor(checkpoint, config, tokenizer, camera_size_px)
    return _internvl_processor(checkpoint, config, tokenizer, camera_size_px)


def _internvl_processor(
    checkpoint: Path, config: dict[str, Any], tokenizer: Tokenizer, camera_size_px: tuple[int, int] | None
) -> Processor:
    tokenizer_config = read_checkpoint_json(checkpoint, "tokenizer_config.json")
    images = _image_settings(checkpoint, config)
    if camera_size_px not in (None, images.tile_px):
        raise ConfigError(
            f"camera_size_px is {_size(camera_size_px)}, but {checkpoint} is InternVL, whose tiles are {_size(images.tile_px)}; "
            "leave it out: it is for Qwen2.5-VL"
        )
    chat = chat_format_from_template(
        _chat_template(checkpoint, tokenizer_config),
        image_token=_image_token(checkpoint, tokenizer, config, tokenizer_config),
        image_start=tokenizer_config.get("start_image_token", "<img>"),
        image_end=tokenizer_config.get("end_image_token", "</img>"),
        tokens_per_image=_required(config, "image_seq_length", int, checkpoint / "config.json"),
        source=str(checkpoint),
    )
    return Processor(INTERNVL, images, chat, PromptEncoder(tokenizer, chat), tokenizer)


def _qwen_processor(
    checkpoint: Path, config: dict[str, Any], tokenizer: Tokenizer, camera_size_px: tuple[int, int] | None
) -> Processor:
    images = _patch_settings(checkpoint, config, camera_size_px)
    image_token, image_start, image_end = (
        _token(checkpoint, tokenizer, config, key) for key in ("image_token_id", "vision_start_token_id", "vision_end_token_id")
    )
    rows, columns = images.token_grid
    chat = chat_format_from_template(
        _chat_template(checkpoint, read_checkpoint_json(checkpoint, "tokenizer_config.json")),
        image_token=image_token,
        image_start=image_start,
        image_end=image_end,
        tokens_per_image=rows * columns,
        source=str(checkpoint),
    )
    return Processor(QWEN2_5_VL, images, chat, PromptEncoder(tokenizer, chat), tokenizer)


def write_processor(source: Path, directory: Path, *, camera_size_px: tuple[int, int] | None = None) -> None:
    """Write the processor files of `source` into an existing directory, in the Hugging Face layout whatever `source` has.

    camera_size_px: as in load_processor; what it comes to is written to camera.json. Raises what load_processor raises.
    """
    processor = load_processor(source, camera_size_px=camera_size_px)
    for name in _PROCESSOR_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, directory / name)
    if isinstance(processor.images, PatchSettings):
        width, height = processor.images.tile_px
        _write_json(directory / CAMERA_FILE, {"width_px": width, "height_px": height})
    if read_checkpoint_json(source, "config.json").get("model_type") == INTERNVL_CHAT:
        processor.tokenizer.save(str(directory / "tokenizer.json"))
        _write_json(directory / "preprocessor_config.json", _preprocessor(source, read_config(source))[0])
        tokenizer_config = read_checkpoint_json(source, "tokenizer_config.json")
        _write_json(directory / "tokenizer_config.json", internvl_chat.hf_tokenizer_config(tokenizer_config))
        (directory / "chat_template.jinja").write_text(internvl_chat.CHAT_TEMPLATE)


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_config(checkpoint: Path) -> dict[str, Any]:
    """config.json of a family that drivekd knows; the original InternVLChat layout is given as the -hf layout has it.

    Raises CheckpointError on another model_type, naming the known ones.
    """
    config = read_checkpoint_json(checkpoint, "config.json")
    if config.get("model_type") == INTERNVL_CHAT:
        return internvl_chat.hf_config(config, load_tokenizer(checkpoint), str(checkpoint / "config.json"))
    if config.get("model_type") not in (INTERNVL, QWEN2_5_VL):
        raise CheckpointError(
            f"{checkpoint}: model_type is {config.get('model_type')!r}; this version takes {INTERNVL!r} (InternVL3, for example "
            f"OpenGVLab/InternVL3-1B-hf), {INTERNVL_CHAT!r} (the same in its original layout) and {QWEN2_5_VL!r} (for example "
            "Qwen/Qwen2.5-VL-3B-Instruct)"
        )
    return config


def load_tokenizer(checkpoint: Path) -> Tokenizer:
    """Read tokenizer.json, or the vocab.json and merges.txt of a Qwen2 tokenizer without one. Raises CheckpointError."""
    path = checkpoint / "tokenizer.json"
    if path.is_file():
        return parse_tokenizer(path.read_bytes(), str(path))
    if not (checkpoint / "vocab.json").is_file() or not (checkpoint / "merges.txt").is_file():
        raise CheckpointError(f"{checkpoint}: tokenizer.json is missing; a checkpoint needs its tokenizer beside the weights")
    tokenizer_config = read_checkpoint_json(checkpoint, "tokenizer_config.json")
    return internvl_chat.qwen2_tokenizer(
        read_checkpoint_json(checkpoint, "vocab.json"),
        (checkpoint / "merges.txt").read_text(),
        _required(tokenizer_config, "added_tokens_decoder", dict, checkpoint / "tokenizer_config.json"),
        str(checkpoint),
    )


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
    if read_checkpoint_json(checkpoint, "config.json").get("model_type") == INTERNVL_CHAT:
        return internvl_chat.CHAT_TEMPLATE  # the one in its tokenizer_config.json is the text model's: it takes no image
    if (checkpoint / "chat_template.jinja").is_file():
        return (checkpoint / "chat_template.jinja").read_text()
    if (checkpoint / "chat_template.json").is_file():
        legacy = read_checkpoint_json(checkpoint, "chat_template.json")
        return _required(legacy, "chat_template", str, checkpoint / "chat_template.json")
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


def _token(checkpoint: Path, tokenizer: Tokenizer, config: dict[str, Any], key: str) -> str:
    token = tokenizer.id_to_token(_required(config, key, int, checkpoint / "config.json"))
    if token is None:
        raise CheckpointError(f"{checkpoint}: config.json says {key} {config[key]}, but the tokenizer has no such token")
    return token


def _preprocessor(checkpoint: Path, config: dict[str, Any]) -> tuple[dict[str, Any], Path]:
    """The image processor's settings, and the file that they are from. config: as read_config gives it."""
    path, nested = checkpoint / "preprocessor_config.json", checkpoint / "processor_config.json"
    if read_checkpoint_json(checkpoint, "config.json").get("model_type") == INTERNVL_CHAT:
        original = read_checkpoint_json(checkpoint, path.name) if path.is_file() else {}
        return internvl_chat.hf_preprocessor(config, original), path
    if not path.is_file() and nested.is_file():
        return _required(read_checkpoint_json(checkpoint, nested.name), "image_processor", dict, nested), nested
    return read_checkpoint_json(checkpoint, path.name), path


def _image_settings(checkpoint: Path, config: dict[str, Any]) -> ImageSettings:
    preprocessor, path = _preprocessor(checkpoint, config)
    size = _required(preprocessor, "size", dict, path)
    height, width = size.get("height"), size.get("width")
    if not isinstance(height, int) or height != width:
        raise CheckpointError(f"{path}: expected a square size in pixels, got {size}")
    vision_size = _required(config, "vision_config", dict, checkpoint / "config.json").get("image_size")
    if vision_size not in (height, [height, width]):
        raise CheckpointError(
            f"{checkpoint}: {path.name} makes {height} px tiles, config.json's vision tower takes {vision_size}"
        )
    mean, std = (tuple(_required(preprocessor, key, list, path)) for key in ("image_mean", "image_std"))
    return ImageSettings(height, mean, std)


def _patch_settings(checkpoint: Path, config: dict[str, Any], camera_size_px: tuple[int, int] | None) -> PatchSettings:
    preprocessor, path = _preprocessor(checkpoint, config)
    vision = _required(config, "vision_config", dict, checkpoint / "config.json")
    for ours, theirs in (("patch_size", "patch_size"), ("merge_size", "spatial_merge_size"), ("temporal_patch_size",) * 2):
        if _required(preprocessor, ours, int, path) != (found := _required(vision, theirs, int, checkpoint / "config.json")):
            raise CheckpointError(
                f"{checkpoint}: {path.name} says {ours} {preprocessor[ours]}, config.json's vision tower has {theirs} {found}"
            )
    mean, std = (tuple(_required(preprocessor, key, list, path)) for key in ("image_mean", "image_std"))
    patch_px, merge, frames = (preprocessor[key] for key in ("patch_size", "merge_size", "temporal_patch_size"))
    width, height = camera_size_px or _stored_camera_size(checkpoint) or DEFAULT_CAMERA_SIZE_PX
    settings = PatchSettings(width, height, mean, std, patch_px, merge, frames)
    if min(width, height) < settings.token_px or width % settings.token_px or height % settings.token_px:
        message = f"width {width} and height {height} must be multiples of {settings.token_px} px, the side of a vision token"
        if camera_size_px is None:
            raise CheckpointError(f"{checkpoint / CAMERA_FILE}: {message}")
        raise ConfigError(f"camera_size_px: {message}; for example {_size(DEFAULT_CAMERA_SIZE_PX)}")
    return settings


def _stored_camera_size(checkpoint: Path) -> tuple[int, int] | None:
    path = checkpoint / CAMERA_FILE
    if not path.is_file():
        return None
    stored = read_checkpoint_json(checkpoint, CAMERA_FILE)
    return _required(stored, "width_px", int, path), _required(stored, "height_px", int, path)


def _size(size_px: tuple[int, int] | None) -> str:
    return "x".join(map(str, size_px or ())) + " px"


def _required(values: dict[str, Any], key: str, kind: type[Value], path: Path) -> Value:
    value = values.get(key)
    if not isinstance(value, kind):
        raise CheckpointError(f"{path}: expected {key} to be a {kind.__name__}, found {value!r}")
    return value
