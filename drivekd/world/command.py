"""What `drivekd data world` does: build with a progress line, and say what was made."""

from __future__ import annotations

from pathlib import Path

from drivekd.errors import UsageError
from drivekd.log import ProgressLine
from drivekd.sample import CAMERAS

from .build import build_world
from .settings import WorldSettings

CAMERA_SETS = {"front": ("CAM_FRONT",), "six": CAMERAS}


def build_world_with_progress(out: Path, *, frames: int, labelled: int, cameras: str, seed: int) -> list[list[str]]:
    """Build a world into `out`; returns table rows. Raises UsageError, DataError."""
    if cameras not in CAMERA_SETS:
        raise UsageError(f"--cameras {cameras}: expected one of {', '.join(CAMERA_SETS)}")
    settings = WorldSettings(train_frames=frames, labelled_frames=min(labelled, frames), cameras=CAMERA_SETS[cameras], seed=seed)
    line = ProgressLine()
    summary = build_world(out, settings, progress=lambda done, total: line.show(f"frame {done}/{total}", final=done == total))
    actions = ", ".join(f"{name} {share:.0%}" for name, share in summary.action_shares.items())
    return [
        ["frames, images", f"{summary.frames:,}, {summary.images:,}"],
        *([name, f"{count:,} records"] for name, count in summary.records.items()),
        ["actions", actions],
        ["images' digest", summary.image_digest],
        ["look at", str(out / "contact_sheet.png")],
    ]
