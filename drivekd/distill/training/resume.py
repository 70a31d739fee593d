"""What a resumed run may change: settings by key; the files that it learns from are told apart by content, so they may move."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from drivekd.config import RunConfig, load_config
from drivekd.errors import CheckpointError, ConfigError
from drivekd.files import file_digest

CHECKPOINT_FILES = ("*.safetensors", "*.json", "*.jinja", "merges.txt")


def input_files(config: RunConfig) -> dict[str, Path]:
    """Records, models and chosen layers, by the key that names each. Pictures are not among them: there may be millions."""
    files: dict[str, Path] = {}
    for key, paths in (("train", config.data.train), ("unlabelled", config.data.unlabelled)):
        files |= {f"data.{key}[{index}]": path for index, path in enumerate(paths)}
    single = {"data.validation": config.data.validation, "signals.layers": config.signals.layers}
    files |= {key: path for key, path in single.items() if path is not None}
    teachers = {f"teachers.{name}": path for name, path in config.teachers.paths().items()}
    for key, checkpoint in {"student.checkpoint": config.student.checkpoint, **teachers}.items():
        for pattern in CHECKPOINT_FILES:
            files |= {f"{key}/{path.name}": path for path in sorted(checkpoint.glob(pattern))}
    return files


def input_digests(config: RunConfig) -> dict[str, str]:
    """sha256 of each of them; a file under several keys is read once."""
    return {key: file_digest(path) for key, path in input_files(config).items()}


def check_inputs(before: Mapping[str, str], now: Mapping[str, str], files: Mapping[str, Path]) -> None:
    """Raises CheckpointError naming the first file that is not what the run started with. files: of `now`."""
    for key in sorted(before.keys() | now.keys()):
        if before.get(key) == now.get(key):
            continue
        name = f"{key} = {files[key]}" if key in files else key
        change = "was not there" if key not in before else "is gone; it was there" if key not in now else "had another content"
        digests = f"sha256 {before.get(key, 'none')[:12]}, now {now.get(key, 'none')[:12]}"
        raise CheckpointError(
            f"--resume: {name}: {change} when this run started ({digests}); put back what was there, or start a new run"
        )


# What a resumed run may change: when it saves, where it computes, what it keeps in memory and on disk.
FREE_KEYS = {
    *("training.checkpoint_every_steps", "training.keep_checkpoints", "training.validate_every_steps"),
    *("training.threads", "training.device", "training.offload_gradients", "training.micro_batch_size"),
    *("student.gradient_checkpointing", "teachers.device"),
    *("cache.directory", "cache.signals", "cache.vision", "cache.fill_first"),
}


def _check_same_run(config: RunConfig, out: Path) -> None:
    """Resuming with other settings would be another run under the old one's name."""
    recorded = out / "config.yaml"
    if not recorded.is_file():
        raise ConfigError(f"--resume: {recorded} does not exist; {out} holds no run to continue")
    before, now = _settings(load_config(recorded)), _settings(config)
    different = [key for key in now if before.get(key) != now[key]]
    if different:
        raise ConfigError(f"--resume: {recorded} was started with another {', '.join(different)}; start a new run for that")


def _settings(config: RunConfig) -> dict[str, Any]:
    """What must stay, by section.key. Files count by whether they are there: `check_inputs` compares their contents."""
    found: dict[str, Any] = {}
    for section, values in config.model_dump().items():
        for key, value in values.items() if isinstance(values, dict) else [("", values)]:
            found[f"{section}.{key}".rstrip(".")] = _without_paths(value)
    return {key: value for key, value in found.items() if key not in _free_keys(config)}


def _free_keys(config: RunConfig) -> set[str]:
    free = set(FREE_KEYS)
    if config.projection.unit == "micro_batch":
        free.remove("training.micro_batch_size")  # what is projected depends on it
    if config.training.early_stop_patience:
        free.remove("training.validate_every_steps")  # when to stop depends on it
    return free


def _without_paths(value: Any) -> Any:
    if isinstance(value, list):
        return [_without_paths(item) for item in value]
    return "a file" if isinstance(value, Path) else value
