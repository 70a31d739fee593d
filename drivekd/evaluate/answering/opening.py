"""Opens what answers: a checkpoint (torch) or a bundle (no torch), told apart by their files."""

from __future__ import annotations

from pathlib import Path

from drivekd.errors import UsageError
from drivekd.hf_checkpoint import Checkpoint

from .answerer import Answerer, AnswererSettings


def is_bundle(path: Path) -> bool:
    """Whether a folder holds a bundle."""
    return (path / "manifest.json").is_file()


def open_answerer(path: Path | Checkpoint, settings: AnswererSettings | None = None) -> Answerer:
    """manifest.json makes a bundle, config.json a checkpoint.

    Raises UsageError for anything else, BundleError or CheckpointError when the files do not hold what they promise.
    """
    settings = settings or AnswererSettings()
    if not isinstance(path, Checkpoint) and is_bundle(path):
        from .bundle_answerer import BundleAnswerer

        return BundleAnswerer(path, settings)
    if isinstance(path, Checkpoint) or (path / "config.json").is_file():
        from .checkpoint_answerer import checkpoint_answerer

        return checkpoint_answerer(path, settings)
    raise UsageError(f"{path}: expected a bundle (manifest.json) or a checkpoint directory (config.json), found neither")
