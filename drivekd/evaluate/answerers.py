"""Opens what can answer: a checkpoint (torch) or a bundle (no torch), told apart by the files in the directory."""

from __future__ import annotations

from pathlib import Path

from drivekd.errors import UsageError
from drivekd.evaluate.evaluation import Answerer


def open_answerer(path: Path, *, device: str = "cpu", batch_size: int = 64, max_new_tokens: int = 24) -> Answerer:
    """manifest.json makes a bundle, config.json a checkpoint. device, batch_size: of a checkpoint.

    Raises UsageError for anything else, BundleError or CheckpointError when the files do not hold what they promise.
    """
    if (path / "manifest.json").is_file():
        from drivekd.evaluate.bundle_answerer import BundleAnswerer

        return BundleAnswerer(path, max_new_tokens=max_new_tokens)
    if (path / "config.json").is_file():
        from drivekd.evaluate.checkpoint_answerer import CheckpointAnswerer

        return CheckpointAnswerer(path, device=device, batch_size=batch_size, max_new_tokens=max_new_tokens)
    raise UsageError(f"{path}: expected a bundle (manifest.json) or a checkpoint directory (config.json), found neither")
