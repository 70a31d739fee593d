"""What training knew and all that follows must keep: contract.json, which `drivekd train` writes beside the weights.

final/, best/, adapter/ and checkpoints/step-N hold one each. Whoever opens the checkpoint reads it (drivekd/hf_checkpoint.py):
eval and calibration take cameras and answer budgets from it, an export writes it into the bundle's manifest, which runtime and
ROS node hold themselves to. A checkpoint without one is taken as it is; one that other files beside it contradict is refused.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

from drivekd.errors import CheckpointError
from drivekd.files import write_whole
from drivekd.images import PREPROCESSING_VERSION
from drivekd.tags import CoordinateStyle
from drivekd.tiling import Tiling
from drivekd.typed_json import TypedJsonError, dataclass_from_json, json_from_dataclass

CONTRACT_FILE = "contract.json"
CONTRACT_VERSION = 1
DEFAULT_MAX_NEW_TOKENS = 64  # of an answer, where nothing says how long answers are

Variable: TypeAlias = str | int | float
Coordinates: TypeAlias = CoordinateStyle | Literal["none"]
COORDINATES: tuple[str, ...] = (*get_args(CoordinateStyle), "none")
COLOURS = "rgb"


@dataclass(frozen=True)
class Contract:
    """One training run's promises. All of it is stated, nothing has a default in the file.

    preprocessing: drivekd.images.PREPROCESSING_VERSION of the training. family: as drivekd.processor names it. tokenizer: sha256
    of what texts become (drivekd.processor.prompt_digest). tile_px: width and height that a camera's picture is resized to.
    tiles: how many of them a camera has, "1x1". colours: order of the channels. mean, std: of each, of values 0..1. cameras:
    names in the order in which a prompt has their pictures; () = the records name none. coordinates: how the records write their
    tags; "none" = they have none. prompts: the questions a bundle asks by default, by capability; variables: values used when
    none is given. note: what whoever reads the answers must know. structured_instruction: text behind a question whose answer
    shall be JSON, "" = none was learnt. max_new_tokens: of an answer, by capability. data: sha256 of the training's files of
    records, by key, as "train[0]".
    """

    format_version: int
    preprocessing: int
    family: str
    tokenizer: str
    tile_px: tuple[int, int]
    tiles: str
    colours: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    cameras: tuple[str, ...]
    coordinates: str
    prompts: dict[str, str]
    variables: dict[str, Variable]
    note: str
    structured_instruction: str
    max_new_tokens: dict[str, int]
    data: dict[str, str]

    def to_text(self) -> str:
        """The text of contract.json."""
        return json.dumps(json_from_dataclass(self), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def write_contract(directory: Path, contract: Contract) -> None:
    """Write contract.json into an existing directory, whole or not at all."""
    write_whole(directory / CONTRACT_FILE, contract.to_text())


def read_contract(directory: Path) -> Contract | None:
    """The contract of a directory, None where there is no such file.

    Raises CheckpointError naming file and key: not JSON, another format version, an unknown, missing or wrong entry.
    """
    path = directory / CONTRACT_FILE
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{path}: not text in UTF-8 ({error})") from error
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from error
    return contract_from_text(text, str(path))


def contract_from_text(text: str, source: str) -> Contract:
    """What `Contract.to_text` wrote. Raises CheckpointError naming `source` and the key."""
    try:
        value: Any = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{source}: not valid JSON ({error})") from error
    version = value.get("format_version") if isinstance(value, dict) else None
    if version != CONTRACT_VERSION:
        raise CheckpointError(
            f"{source}: format_version is {version!r}; this drivekd reads {CONTRACT_VERSION}. Use the version that trained this"
        )
    try:
        contract = dataclass_from_json(Contract, value, "contract")
    except TypedJsonError as error:
        raise CheckpointError(f"{source}: {error}") from error
    if problem := _problem(contract):
        raise CheckpointError(f"{source}: {problem}")
    return contract


def differences(before: Contract, now: Contract) -> list[str]:
    """Each field that is not alike, as "cameras: CAM_FRONT, now CAM_BACK"."""
    pairs = [(field.name, getattr(before, field.name), getattr(now, field.name)) for field in fields(Contract)]
    return [f"{name}: {_told(old)}, now {_told(new)}" for name, old, new in pairs if old != new]


def answer_budget(budgets: Mapping[str, int], capability: str) -> int:
    """Tokens of an answer under a capability. One that has no budget, a free question's, gets the largest of all."""
    return budgets.get(capability, max(budgets.values(), default=DEFAULT_MAX_NEW_TOKENS))


def _problem(contract: Contract) -> str | None:
    if contract.preprocessing != PREPROCESSING_VERSION:
        return (
            f"preprocessing is {contract.preprocessing}, this drivekd makes pixels by version {PREPROCESSING_VERSION}, which the "
            "model was not trained on; use the drivekd that trained it, or train anew"
        )
    expected = {"colours": (contract.colours, (COLOURS,)), "coordinates": (contract.coordinates, COORDINATES)}
    for key, (found, known) in expected.items():
        if found not in known:
            return f"{key} is {found!r}; expected {' or '.join(map(repr, known))}"
    if min(contract.tile_px) < 1:
        return f"tile_px is {list(contract.tile_px)}; expected a width and a height"
    try:
        Tiling.parse(contract.tiles)
    except ValueError as error:
        return f"tiles: {error}"
    if len(set(contract.cameras)) != len(contract.cameras) or "" in contract.cameras:
        return f"cameras: a name is empty or stands twice in {', '.join(contract.cameras)}"
    if wrong := [name for name, tokens in contract.max_new_tokens.items() if tokens < 1]:
        return f"max_new_tokens.{wrong[0]} is {contract.max_new_tokens[wrong[0]]}; expected at least 1"
    if missing := set(contract.prompts) ^ set(contract.max_new_tokens):
        return f"prompts and max_new_tokens name other capabilities: {', '.join(sorted(missing))} is in one of them alone"
    return None


def _told(value: object) -> str:
    if isinstance(value, tuple):
        return ", ".join(map(str, value)) or "none"
    return json.dumps(value, ensure_ascii=False) if isinstance(value, dict) else repr(value)
