"""The files that a run learns from, and whether a resumed run still has the same ones: by content, so that they may move."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from drivekd.config import RunConfig
from drivekd.digests import file_digest
from drivekd.errors import CheckpointError

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
