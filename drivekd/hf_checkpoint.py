"""A checkpoint directory, opened once and passed on: what it holds besides weights, each file read once. Imports no torch.

checkpoint = Checkpoint.open(path)    # config.json is read and judged here, and nowhere else
load_processor(checkpoint)            # images and text to model inputs

config.json               model_type, ids of the image tokens, the vision tower's sizes
tokenizer.json            the tokenizer itself
tokenizer_config.json     names of the image tokens, and the chat template where it has no file of its own
chat_template.jinja       or chat_template.json
preprocessor_config.json  size, mean, std; or within processor_config.json, where transformers 5 writes them
camera.json               width_px and height_px of Qwen2.5-VL's camera tile, or InternVL's tiles, where drivekd wrote it
contract.json             what drivekd's training promised (drivekd/contract.py); none of the other files may contradict it
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from tokenizers import Tokenizer

from drivekd import internvl_chat
from drivekd.chat import PromptEncoder, chat_format_from_template
from drivekd.contract import CONTRACT_FILE, Contract, read_contract, write_contract
from drivekd.errors import CheckpointError, ConfigError
from drivekd.files import TRACES_FILE
from drivekd.grounding import check_not_needed, ordinary_tokenizer_config, ordinary_tokens
from drivekd.images import ImageSettings, PatchSettings, TiledSettings
from drivekd.tiling import Tiling

from .processor import INTERNVL, QWEN2_5_VL, Processor, parse_tokenizer, prompt_digest

ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"  # as peft names them
INTERNVL_CHAT = "internvl_chat"  # InternVL's original layout; read as INTERNVL
CAMERA_FILE = "camera.json"
RUN_CONFIG = "config.yaml"  # which drivekd writes into final/ and best/
_RUN = re.compile(r"(?ms)^student:.*^training:")
DEFAULT_CAMERA_SIZE_PX = (588, 336)  # width, height: 12 x 21 = 252 tokens, about InternVL's 256, at a camera's 16:9
_PROCESSOR_FILES = (
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


@dataclass(frozen=True)
class CheckpointFiles:
    """The files of a checkpoint's or an adapter's directory, each read when first asked for, and once.

    grounding: special tokens that are taken for ordinary ones, see drivekd/grounding.py.
    """

    path: Path
    grounding: tuple[str, ...] = ()
    _values: dict[str, dict[str, Any]] = field(default_factory=dict, init=False, repr=False, compare=False)

    def has(self, name: str) -> bool:
        """Whether there is such a file now; nothing is read or kept."""
        return (self.path / name).is_file()

    def json(self, name: str) -> Mapping[str, Any]:
        """The JSON object in a file. Raises CheckpointError naming it when it is missing or holds anything else."""
        if name not in self._values:
            self._values[name] = _read_json(self.path, name)
        return self._values[name]

    @cached_property
    def contract(self) -> Contract | None:
        """What training promised; None in what other tools made. Raises CheckpointError: damaged, or lost from a drivekd run."""
        found = read_contract(self.path)
        if found is None and self.has(RUN_CONFIG) and _RUN.search(_read_text(self.path / RUN_CONFIG)):
            raise CheckpointError(
                f"{self.path / RUN_CONFIG} says that drivekd trained this, but {CONTRACT_FILE} is missing: cameras, tile and "
                "lengths of answers are unknown. Copy it from the run, or train again; without both files it is taken as it is"
            )
        return found

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """Of tokenizer.json, or of the vocab.json and merges.txt of a Qwen2 tokenizer without one.

        Raises CheckpointError; ConfigError for a grounding token that it does not have.
        """
        stored = self._stored_tokenizer()
        return ordinary_tokens(stored, self.grounding, str(self.path)) if self.grounding else stored

    def _stored_tokenizer(self) -> Tokenizer:
        path = self.path / "tokenizer.json"
        if path.is_file():
            return parse_tokenizer(path.read_bytes(), str(path))
        if not self.has("vocab.json") or not self.has("merges.txt"):
            raise CheckpointError(f"{self.path}: tokenizer.json is missing; a checkpoint needs its tokenizer beside the weights")
        tokenizer_config = self.json("tokenizer_config.json")
        return internvl_chat.qwen2_tokenizer(
            _read_json(self.path, "vocab.json"),
            _read_text(self.path / "merges.txt"),
            _required(tokenizer_config, "added_tokens_decoder", dict, self.path / "tokenizer_config.json"),
            str(self.path),
        )


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A checkpoint of a family that drivekd knows, a value to pass on; made by `open`.

    layout: model_type as config.json has it. config: config.json; that of the original InternVLChat layout is given as the -hf
    layout has it. Not to be changed: copy what something else may write into.
    """

    files: CheckpointFiles
    layout: str
    config: Mapping[str, Any]

    @classmethod
    def open(cls, checkpoint: Path | Checkpoint) -> Checkpoint:
        """Read and judge config.json; an opened checkpoint is given back. Raises CheckpointError.

        On another model_type the error names the known ones.
        """
        if isinstance(checkpoint, Checkpoint):
            return checkpoint
        files = CheckpointFiles(checkpoint)
        refuse_adapter_beside_weights(files)
        config = files.json("config.json")
        layout = config.get("model_type")
        _ = files.contract  # a damaged one is named before anything slow
        if layout == INTERNVL_CHAT:
            return cls(files, layout, internvl_chat.hf_config(config, files.tokenizer, str(checkpoint / "config.json")))
        if layout not in (INTERNVL, QWEN2_5_VL):
            raise CheckpointError(
                f"{checkpoint}: model_type is {layout!r}; this version takes {INTERNVL!r} (InternVL3, for example "
                f"OpenGVLab/InternVL3-1B-hf), {INTERNVL_CHAT!r} (the same in its original layout) and {QWEN2_5_VL!r} "
                "(for example Qwen/Qwen2.5-VL-3B-Instruct)"
            )
        return cls(files, layout, config)

    @property
    def path(self) -> Path:
        """Its directory."""
        return self.files.path

    def with_grounding(self, tokens: Sequence[str]) -> Checkpoint:
        """The same with special tokens that texts may hold; with none of them, itself."""
        return replace(self, files=CheckpointFiles(self.path, tuple(tokens))) if tokens else self

    @property
    def model_type(self) -> str:
        """The family, whatever the layout."""
        return str(self.config["model_type"])

    @property
    def contract(self) -> Contract | None:
        """What training promised; None where nothing says."""
        return self.files.contract


def refuse_adapter_beside_weights(files: CheckpointFiles) -> None:
    """Raises CheckpointError on a folder that is two models: a whole one, and an adapter that may already be merged into it.

    Training and evaluation would take the one and an export the other, or transformers the adapter on top of the merged weights.
    """
    whole = sorted(path.name for path in files.path.glob("model*.safetensors"))
    if whole and files.has(ADAPTER_CONFIG):
        raise CheckpointError(
            f"{files.path}: holds a whole model ({whole[0]}) and an adapter ({ADAPTER_CONFIG}), and does not say whether that is "
            f"merged into it. Keep one: the whole model without {ADAPTER_CONFIG} and {ADAPTER_WEIGHTS}, or these two in a folder "
            "of their own"
        )


def load_processor(
    checkpoint: Path | Checkpoint,
    *,
    camera_size_px: tuple[int, int] | None = None,
    tiles: str | None = None,
    adapter: CheckpointFiles | None = None,
) -> Processor:
    """Read a checkpoint's processor. Raises CheckpointError naming the missing or wrong file, and both files that contradict.

    camera_size_px: Qwen2.5-VL's camera tile, width and height, for a training that sets out anew. None: the contract's, else
    camera.json's, else DEFAULT_CAMERA_SIZE_PX. tiles: of a camera in InternVL, as "2x1+thumbnail", in the same way; else 1x1.
    adapter: trained over this checkpoint; where it has a contract, that one counts.
    Raises ConfigError when the family cannot take it.
    """
    checkpoint = Checkpoint.open(checkpoint)
    bound = adapter if adapter is not None and adapter.contract is not None else checkpoint.files
    contract = bound.contract
    if contract is None:
        for files in (checkpoint.files, *([adapter] if adapter is not None else [])):
            _refuse_lost_contract(files)
        return _processor(checkpoint, camera_size_px, tiles)
    if contract.family != checkpoint.model_type:
        raise _contradiction(bound, "family", contract.family, checkpoint, "config.json", checkpoint.model_type)
    if bound is checkpoint.files:
        _check_camera_file(checkpoint, contract)
    size_px = contract.tile_px if contract.family == QWEN2_5_VL else None  # InternVL's is within the model
    try:
        processor = _processor(checkpoint, camera_size_px or size_px, tiles or contract.tiles)
    except ConfigError as error:
        if camera_size_px is not None or tiles is not None:
            raise
        raise CheckpointError(f"{bound.path / CONTRACT_FILE}: {error}") from error
    _check_contract(bound, contract, checkpoint, processor)
    return processor


def _processor(checkpoint: Checkpoint, camera_size_px: tuple[int, int] | None, tiles: str | None) -> Processor:
    if checkpoint.model_type == QWEN2_5_VL:
        _refuse_tiles(checkpoint, tiles)
        processor = _qwen_processor(checkpoint, camera_size_px)
    else:
        processor = _internvl_processor(checkpoint, camera_size_px, tiles)
    check_not_needed(checkpoint.files.grounding, processor.chat, str(checkpoint.path))
    return processor


def _refuse_lost_contract(files: CheckpointFiles) -> None:
    """Without it a tile has the default's size, cameras any order and answers any length, and only the answers would show it."""
    if files.has(TRACES_FILE):
        raise CheckpointError(
            f"{files.path}: {CONTRACT_FILE} is missing, yet {TRACES_FILE} says that training wrote this folder, and training "
            f"writes both: nothing tells its tile size, cameras, prompts and answer budgets. Copy {CONTRACT_FILE} from the run"
        )


def _check_camera_file(checkpoint: Checkpoint, contract: Contract) -> None:
    """camera.json against the contract beside it."""
    if contract.family == QWEN2_5_VL:
        stored = _stored_camera_size(checkpoint.files)
        if stored not in (None, contract.tile_px):
            raise _contradiction(checkpoint.files, "a tile of", _size(contract.tile_px), checkpoint, CAMERA_FILE, _size(stored))
    elif (tiles := _stored_tiles(checkpoint)) not in (None, contract.tiles):
        raise _contradiction(checkpoint.files, "tiles a camera", contract.tiles, checkpoint, CAMERA_FILE, tiles)


def _check_contract(bound: CheckpointFiles, contract: Contract, checkpoint: Checkpoint, processor: Processor) -> None:
    images = processor.images
    file = _preprocessor(checkpoint)[1].name
    if not isinstance(images, PatchSettings) and contract.tile_px != images.tile_px:
        raise _contradiction(bound, "a tile of", _size(contract.tile_px), checkpoint, file, _size(images.tile_px))
    for key in ("mean", "std"):
        promised, found = getattr(contract, key), getattr(images, key)
        if promised != found:
            raise _contradiction(bound, f"an image {key} of", list(promised), checkpoint, file, list(found))
    if contract.tokenizer != (found := prompt_digest(processor.prompts)):
        what = "the tokenizer and chat template with sha256"
        raise _contradiction(bound, what, contract.tokenizer[:16], checkpoint, "tokenizer.json or chat template", found[:16])


def _contradiction(
    bound: CheckpointFiles, what: str, promised: object, checkpoint: Checkpoint, file: str, found: object
) -> CheckpointError:
    return CheckpointError(
        f"{bound.path / CONTRACT_FILE} says {what} {promised}, {checkpoint.path / file} says {found}: the model was trained as "
        "the contract says; put back the files that training wrote"
    )


def stated_tiles(checkpoint: Checkpoint) -> str | None:
    """The tiles of a camera that an InternVL checkpoint was trained with, None where it does not say. Raises CheckpointError."""
    if checkpoint.model_type != QWEN2_5_VL and checkpoint.contract is not None:
        return checkpoint.contract.tiles
    return _stored_tiles(checkpoint)


def _stored_tiles(checkpoint: Checkpoint) -> str | None:
    if checkpoint.model_type == QWEN2_5_VL or not checkpoint.files.has(CAMERA_FILE):
        return None
    return _required(checkpoint.files.json(CAMERA_FILE), "tiles", str, checkpoint.path / CAMERA_FILE)


def _refuse_tiles(checkpoint: Checkpoint, tiles: str | None) -> None:
    if tiles not in (None, str(Tiling())):
        raise ConfigError(
            f"tiles is {tiles}, but {checkpoint.path} is Qwen2.5-VL, which sees each camera as one tile of any shape; leave "
            "tiles out and set data.camera_size_px to a larger width and height"
        )


def _tiling(checkpoint: Checkpoint, tiles: str | None) -> Tiling:
    stated = stated_tiles(checkpoint) if tiles is None else tiles
    try:
        return Tiling.parse(stated) if stated is not None else Tiling()
    except ValueError as error:
        if tiles is None:
            raise CheckpointError(f"{checkpoint.path / CAMERA_FILE}: tiles: {error}") from error
        raise ConfigError(f"tiles: {error}") from error


def _internvl_processor(checkpoint: Checkpoint, camera_size_px: tuple[int, int] | None, tiles: str | None) -> Processor:
    tokenizer, tokenizer_config = checkpoint.files.tokenizer, checkpoint.files.json("tokenizer_config.json")
    images = _image_settings(checkpoint, _tiling(checkpoint, tiles))
    if camera_size_px not in (None, images.tile_px):
        raise ConfigError(
            f"camera_size_px is {_size(camera_size_px)}, but {checkpoint.path} is InternVL, whose tiles are "
            f"{_size(images.tile_px)}; leave it out: it is for Qwen2.5-VL"
        )
    chat = chat_format_from_template(
        _chat_template(checkpoint),
        image_token=_image_token(checkpoint),
        image_start=tokenizer_config.get("start_image_token", "<img>"),
        image_end=tokenizer_config.get("end_image_token", "</img>"),
        tokens_per_image=images.tiling.num_tiles * _configured(checkpoint, "image_seq_length", int),
        source=str(checkpoint.path),
    )
    return Processor(INTERNVL, images, chat, PromptEncoder(tokenizer, chat), tokenizer)


def _qwen_processor(checkpoint: Checkpoint, camera_size_px: tuple[int, int] | None) -> Processor:
    tokenizer = checkpoint.files.tokenizer
    images = _patch_settings(checkpoint, camera_size_px)
    image_token, image_start, image_end = (
        _token(checkpoint, key) for key in ("image_token_id", "vision_start_token_id", "vision_end_token_id")
    )
    rows, columns = images.token_grid
    chat = chat_format_from_template(
        _chat_template(checkpoint),
        image_token=image_token,
        image_start=image_start,
        image_end=image_end,
        tokens_per_image=rows * columns,
        source=str(checkpoint.path),
    )
    return Processor(QWEN2_5_VL, images, chat, PromptEncoder(tokenizer, chat), tokenizer)


def write_processor(
    source: Path | Checkpoint, directory: Path, *, camera_size_px: tuple[int, int] | None = None, tiles: str | None = None
) -> None:
    """Write the processor files of `source` into an existing directory, in the Hugging Face layout whatever `source` has.

    camera_size_px, tiles: as in load_processor; what they come to is written to camera.json, but for tiles of which neither
    source nor caller says anything. Raises what load_processor raises.
    """
    source = Checkpoint.open(source)
    processor = load_processor(source, camera_size_px=camera_size_px, tiles=tiles)
    for name in _PROCESSOR_FILES:
        if source.files.has(name):
            shutil.copyfile(source.path / name, directory / name)
    if source.files.has("tokenizer.json"):  # not copied: it may store somebody's truncation and padding
        processor.tokenizer.save(str(directory / "tokenizer.json"))
    if isinstance(processor.images, PatchSettings):
        width, height = processor.images.tile_px
        _write_json(directory / CAMERA_FILE, {"width_px": width, "height_px": height})
    elif tiles is not None or stated_tiles(source) is not None:
        _write_json(directory / CAMERA_FILE, {"tiles": str(processor.images.tiling)})
    if source.layout == INTERNVL_CHAT:
        processor.tokenizer.save(str(directory / "tokenizer.json"))
        _write_json(directory / "preprocessor_config.json", _preprocessor(source)[0])
        tokenizer_config = source.files.json("tokenizer_config.json")
        _write_json(directory / "tokenizer_config.json", internvl_chat.hf_tokenizer_config(tokenizer_config))
        (directory / "chat_template.jinja").write_text(internvl_chat.CHAT_TEMPLATE, encoding="utf-8")
    if tokens := source.files.grounding:
        processor.tokenizer.save(str(directory / "tokenizer.json"))
        config = _read_json(directory, "tokenizer_config.json")
        _write_json(directory / "tokenizer_config.json", ordinary_tokenizer_config(config, tokens))


def write_promised(source: Checkpoint, directory: Path, contract: Contract) -> None:
    """Write the processor files of `source` with the tiles that a contract states, whatever `source` says, and the contract."""
    if contract.family == QWEN2_5_VL:
        write_processor(source, directory, camera_size_px=contract.tile_px)
    else:
        write_processor(source, directory, tiles=contract.tiles)
    write_contract(directory, contract)


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _read_json(directory: Path, name: str) -> dict[str, Any]:
    path = directory / name
    if not directory.is_dir():
        raise CheckpointError(f"{directory}: no such checkpoint directory")
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(f"{directory}: {name} is missing; expected a checkpoint in the Hugging Face layout") from error
    except (ValueError, RecursionError) as error:  # of JSON, of UTF-8, of a number with thousands of digits
        raise CheckpointError(f"{path}: not valid JSON ({error})") from error
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: expected a JSON object")
    return value


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{path}: not text in UTF-8 ({error})") from error
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from error


def _chat_template(checkpoint: Checkpoint) -> str:
    files = checkpoint.files
    tokenizer_config = files.json("tokenizer_config.json")
    if checkpoint.layout == INTERNVL_CHAT:
        return internvl_chat.CHAT_TEMPLATE  # the one in its tokenizer_config.json is the text model's: it takes no image
    if files.has("chat_template.jinja"):
        return _read_text(files.path / "chat_template.jinja")
    if files.has("chat_template.json"):
        return _required(files.json("chat_template.json"), "chat_template", str, files.path / "chat_template.json")
    template = tokenizer_config.get("chat_template")
    if not isinstance(template, str):
        raise CheckpointError(f"{files.path}: no chat_template.jinja and no chat_template in tokenizer_config.json")
    return template


def _image_token(checkpoint: Checkpoint) -> str:
    token = checkpoint.files.json("tokenizer_config.json").get("context_image_token", "<IMG_CONTEXT>")
    stated, found = checkpoint.config.get("image_token_id"), checkpoint.files.tokenizer.token_to_id(token)
    if found != stated:
        raise CheckpointError(
            f"{checkpoint.path}: config.json says image_token_id {stated}, but the tokenizer gives {token!r} the id {found}"
        )
    return str(token)


def _token(checkpoint: Checkpoint, key: str) -> str:
    token_id = _configured(checkpoint, key, int)
    token = checkpoint.files.tokenizer.id_to_token(token_id)
    if token is None:
        raise CheckpointError(f"{checkpoint.path}: config.json says {key} {token_id}, but the tokenizer has no such token")
    return token


def _preprocessor(checkpoint: Checkpoint) -> tuple[Mapping[str, Any], Path]:
    """The image processor's settings, and the file that they are from."""
    files = checkpoint.files
    path, nested = files.path / "preprocessor_config.json", files.path / "processor_config.json"
    if checkpoint.layout == INTERNVL_CHAT:
        original = files.json(path.name) if path.is_file() else {}
        return internvl_chat.hf_preprocessor(checkpoint.config, original), path
    if not path.is_file() and nested.is_file():
        return _required(files.json(nested.name), "image_processor", dict, nested), nested
    return files.json(path.name), path


def _image_settings(checkpoint: Checkpoint, tiling: Tiling) -> ImageSettings:
    preprocessor, path = _preprocessor(checkpoint)
    size = _required(preprocessor, "size", dict, path)
    height, width = size.get("height"), size.get("width")
    if not isinstance(height, int) or height != width:
        raise CheckpointError(f"{path}: expected a square size in pixels, got {size}")
    vision_size = _configured(checkpoint, "vision_config", dict).get("image_size")
    if vision_size not in (height, [height, width]):
        raise CheckpointError(
            f"{checkpoint.path}: {path.name} makes {height} px tiles, config.json's vision tower takes {vision_size}"
        )
    mean, std = (tuple(_required(preprocessor, key, list, path)) for key in ("image_mean", "image_std"))
    return TiledSettings(height, mean, std, str(tiling)) if tiling.is_grid else ImageSettings(height, mean, std)


def _patch_settings(checkpoint: Checkpoint, camera_size_px: tuple[int, int] | None) -> PatchSettings:
    preprocessor, path = _preprocessor(checkpoint)
    vision = _configured(checkpoint, "vision_config", dict)
    for ours, theirs in (("patch_size", "patch_size"), ("merge_size", "spatial_merge_size"), ("temporal_patch_size",) * 2):
        found = _required(vision, theirs, int, checkpoint.path / "config.json")
        if _required(preprocessor, ours, int, path) != found:
            raise CheckpointError(
                f"{checkpoint.path}: {path.name} says {ours} {preprocessor[ours]}, "
                f"config.json's vision tower has {theirs} {found}"
            )
    mean, std = (tuple(_required(preprocessor, key, list, path)) for key in ("image_mean", "image_std"))
    patch_px, merge, frames = (preprocessor[key] for key in ("patch_size", "merge_size", "temporal_patch_size"))
    width, height = camera_size_px or _stored_camera_size(checkpoint.files) or DEFAULT_CAMERA_SIZE_PX
    settings = PatchSettings(width, height, mean, std, patch_px, merge, frames)
    if min(width, height) < settings.token_px or width % settings.token_px or height % settings.token_px:
        message = f"width {width} and height {height} must be multiples of {settings.token_px} px, the side of a vision token"
        if camera_size_px is None:
            raise CheckpointError(f"{checkpoint.path / CAMERA_FILE}: {message}")
        raise ConfigError(f"camera_size_px: {message}; for example {_size(DEFAULT_CAMERA_SIZE_PX)}")
    return settings


def _stored_camera_size(files: CheckpointFiles) -> tuple[int, int] | None:
    if not files.has(CAMERA_FILE):
        return None
    stored, path = files.json(CAMERA_FILE), files.path / CAMERA_FILE
    return _required(stored, "width_px", int, path), _required(stored, "height_px", int, path)


def _size(size_px: tuple[int, int] | None) -> str:
    return "x".join(map(str, size_px or ())) + " px"


def _configured(checkpoint: Checkpoint, key: str, kind: type[Value]) -> Value:
    return _required(checkpoint.config, key, kind, checkpoint.path / "config.json")


def _required(values: Mapping[str, Any], key: str, kind: type[Value], path: Path) -> Value:
    value = values.get(key)
    if not isinstance(value, kind):
        raise CheckpointError(f"{path}: expected {key} to be a {kind.__name__}, found {value!r}")
    return value
