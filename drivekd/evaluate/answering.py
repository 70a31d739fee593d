"""What can answer an evaluation's questions: a checkpoint (torch) or a bundle (no torch), told apart by their files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from drivekd.errors import UsageError
from drivekd.evaluate.scores import ImageSetting
from drivekd.hf_checkpoint import Checkpoint
from drivekd.sample import Sample

MAX_NEW_TOKENS = 24  # what is scored stands at an answer's beginning; what comes later is cut
BATCH_SIZE = 64  # questions that a checkpoint answers at once


class Answerer(Protocol):
    """A checkpoint or a bundle. name: its path; digest: "sha256:..." of what it is made of."""

    @property
    def name(self) -> str: ...

    @property
    def digest(self) -> str: ...

    def answers(
        self,
        samples: Sequence[Sample],
        *,
        images: ImageSetting = "clean",
        on_progress: Callable[[int, int], None] | None = None,
    ) -> list[str]:
        """Greedily generated texts in the order of `samples`. images "black": the same path with zeroed pixels."""
        ...


def open_answerer(
    path: Path | Checkpoint,
    *,
    device: str = "cpu",
    batch_size: int = BATCH_SIZE,
    max_new_tokens: int = MAX_NEW_TOKENS,
    threads: int | None = None,
) -> Answerer:
    """manifest.json makes a bundle, config.json a checkpoint. device, batch_size: of a checkpoint.
    threads: of one operator of a bundle's engines, None = all cores; a checkpoint takes torch's own.

    Raises UsageError for anything else, BundleError or CheckpointError when the files do not hold what they promise.
    """
    if not isinstance(path, Checkpoint) and (path / "manifest.json").is_file():
        from drivekd.evaluate.bundle_answerer import BundleAnswerer

        return BundleAnswerer(path, max_new_tokens=max_new_tokens, threads=threads)
    if isinstance(path, Checkpoint) or (path / "config.json").is_file():
        from drivekd.evaluate.checkpoint_answerer import CheckpointAnswerer

        return CheckpointAnswerer(path, device=device, batch_size=batch_size, max_new_tokens=max_new_tokens)
    raise UsageError(f"{path}: expected a bundle (manifest.json) or a checkpoint directory (config.json), found neither")
