"""Checkpoints: a directory in the Hugging Face layout plus what resuming needs; safetensors and JSON, no pickle.

model.safetensors, config.json, tokenizer.json, ...   the model, as any Hugging Face loader reads it
prompts.json                                          the questions an exported bundle asks by default
optimizer.safetensors                                 AdamW's moments by parameter name      (checkpoints only)
training_state.json                                   step, threads, digests                 (checkpoints only)
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import InternVLForConditionalGeneration

from drivekd.config import PromptsConfig
from drivekd.data.sample import CAPABILITIES
from drivekd.errors import CheckpointError
from drivekd.run_directory import whole_directory, write_json_atomic

STATE_FILE = "training_state.json"
OPTIMIZER_FILE = "optimizer.safetensors"
_STEP_NAME = re.compile(r"step-(\d+)")


@dataclass(frozen=True)
class TrainingState:
    """step: optimizer steps done. threads: CPU threads it ran with. files: sha256 of every file of the checkpoint."""

    step: int
    threads: int
    files: dict[str, str]


def write_model(directory: Path, model: InternVLForConditionalGeneration, source: Path, prompts: PromptsConfig) -> None:
    """Write weights, and the processor files of `source`, into an existing directory."""
    for path in source.iterdir():
        ours = path.name in (STATE_FILE, "prompts.json") or path.name.endswith(".index.json")
        if path.suffix in (".json", ".jinja", ".txt") and not ours:
            shutil.copyfile(path, directory / path.name)
    model.save_pretrained(directory)
    values = prompts.model_dump()
    write_json_atomic(
        directory / "prompts.json",
        {"prompts": {name: values[name] for name in CAPABILITIES}, "variables": values["variables"], "note": prompts.note},
    )


def write_checkpoint(
    directory: Path,
    model: InternVLForConditionalGeneration,
    optimizer: torch.optim.Optimizer,
    names: dict[nn.Parameter, str],
    source: Path,
    prompts: PromptsConfig,
    step: int,
    threads: int,
) -> None:
    """Write checkpoints/step-N whole or not at all. Raises DrivekdError when the disk is full."""
    with whole_directory(directory) as temporary:
        write_model(temporary, model, source, prompts)
        save_file(_optimizer_tensors(optimizer, names), temporary / OPTIMIZER_FILE)
        digests = {path.name: _sha256(path) for path in sorted(temporary.iterdir())}
        write_json_atomic(temporary / STATE_FILE, asdict(TrainingState(step, threads, digests)))


def newest_checkpoint(checkpoints: Path) -> tuple[Path, TrainingState] | None:
    """The newest complete checkpoint; a kill can only leave temporary directories, which are removed here.

    Raises CheckpointError when the newest one is damaged.
    """
    if not checkpoints.is_dir():
        return None
    for leftover in checkpoints.glob(".step-*.tmp"):
        shutil.rmtree(leftover)
    found = [(int(match[1]), path) for path in checkpoints.iterdir() if (match := _STEP_NAME.fullmatch(path.name))]
    if not found:
        return None
    _, directory = max(found)
    return directory, _read_state(directory)


def remove_old_checkpoints(checkpoints: Path, keep: int) -> None:
    found = sorted((int(match[1]), path) for path in checkpoints.iterdir() if (match := _STEP_NAME.fullmatch(path.name)))
    for _, path in found[:-keep]:
        shutil.rmtree(path)


def restore_optimizer(directory: Path, optimizer: torch.optim.Optimizer, names: dict[nn.Parameter, str]) -> None:
    """Put AdamW's moments and step counts back. Raises CheckpointError when they are of another model."""
    tensors = load_file(directory / OPTIMIZER_FILE)
    for parameter, name in names.items():
        state = {key.split("/", 1)[0]: value for key, value in tensors.items() if key.split("/", 1)[1] == name}
        if set(state) != {"step", "exp_avg", "exp_avg_sq"} or state["exp_avg"].shape != parameter.shape:
            raise CheckpointError(f"{directory / OPTIMIZER_FILE}: no optimizer state for {name}; it is of another student")
        device = parameter.device
        optimizer.state[parameter] = {key: value if key == "step" else value.to(device) for key, value in state.items()}


def _optimizer_tensors(optimizer: torch.optim.Optimizer, names: dict[nn.Parameter, str]) -> dict[str, Tensor]:
    return {
        f"{key}/{name}": value.detach().cpu().contiguous()
        for parameter, name in names.items()
        for key, value in optimizer.state[parameter].items()
    }


def _read_state(directory: Path) -> TrainingState:
    path = directory / STATE_FILE
    try:
        state = TrainingState(**json.loads(path.read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error}); remove {directory} to resume from the one before") from error
    for name, digest in state.files.items():
        if not (directory / name).is_file() or _sha256(directory / name) != digest:
            raise CheckpointError(f"{directory / name}: damaged or missing; remove {directory} to resume from the one before")
    return state


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
