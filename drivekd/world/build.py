"""Builds a world directory: pictures, questions, manifest, contact sheet; whole or not at all. What `drivekd data world` does.

OUT/samples/CAM_FRONT/train-000000.jpg ...
OUT/train.json  unlabelled.json  validation.json  test.json      lists of Drive-KD records
OUT/manifest.json                                                settings, seeds, counts, digests
OUT/contact_sheet.png                                            for people
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from drivekd import __version__
from drivekd.errors import DataError, UsageError
from drivekd.files import whole_directory
from drivekd.log import ProgressLine
from drivekd.sample import CAMERAS

from .frames import FrameJob, FrameResult, make_frames
from .oracle import Action
from .questions import Record, without_answer
from .settings import SPLITS, WorldSettings
from .sheet import write_contact_sheet

FORMAT_VERSION = 1
_BYTES_PER_PIXEL = 0.35  # JPEG at quality 90, measured 0.2 - 0.3
_BYTES_PER_FRAME = 6_000  # nine records
_BYTES_BESIDES = 4_000_000  # contact sheet, manifest


@dataclass(frozen=True)
class WorldSummary:
    """What was built. records: file name to number of records. action_shares: over all frames."""

    out: Path
    frames: int
    images: int
    records: dict[str, int]
    action_shares: dict[Action, float]
    image_digest: str


def build_world(
    out: Path, settings: WorldSettings | None = None, *, progress: Callable[[int, int], None] | None = None
) -> WorldSummary:
    """Build a world in the new directory `out`; progress(done, total) is called after each frame.

    Raises UsageError when `out` exists and is not an empty directory, DataError when the disk is full.
    """
    settings = settings or WorldSettings()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"{out} exists and is not empty; name a new directory or remove this one.")
    with whole_directory(out, needed_bytes=_needed_bytes(settings), error_type=DataError) as root:
        return _fill(root, out, settings, progress)


def _fill(root: Path, out: Path, settings: WorldSettings, progress: Callable[[int, int], None] | None) -> WorldSummary:
    for camera in settings.cameras:
        (root / "samples" / camera).mkdir(parents=True)
    jobs = [FrameJob(split, i, seed) for split in SPLITS for i, seed in enumerate(settings.scene_seeds(split))]
    results = []
    for result in make_frames(jobs, root, settings):
        results.append(result)
        if progress is not None:
            progress(len(results), len(jobs))
    digests = {name: _write_records(root / name, records) for name, records in _files(results, settings).items()}
    summary = _summarise(out, results, settings)
    if settings.contact_sheet:
        write_contact_sheet(root / "contact_sheet.png", settings.scene_seeds("train").start)
    _write_manifest(root / "manifest.json", summary, settings, digests)
    return summary


def _files(results: Sequence[FrameResult], settings: WorldSettings) -> dict[str, list[Record]]:
    files: dict[str, list[Record]] = {name: [] for name in ("train.json", "unlabelled.json", "validation.json", "test.json")}
    for result in results:
        if result.job.split == "train" and result.job.index >= settings.labelled_frames:
            files["unlabelled.json"] += [without_answer(record) for record in result.records]
        else:
            files[f"{result.job.split}.json"] += result.records
    return files


def _write_records(path: Path, records: Sequence[Record]) -> str:
    """Write one record a line; return the file's SHA-256."""
    lines = ",\n".join(json.dumps(record, ensure_ascii=False) for record in records)
    content = f"[\n{lines}\n]\n".encode()
    path.write_bytes(content)
    return hashlib.sha256(content).hexdigest()


def _summarise(out: Path, results: Sequence[FrameResult], settings: WorldSettings) -> WorldSummary:
    actions = Counter(result.action for result in results)
    names: tuple[Action, ...] = ("keep", "slow", "brake", "left", "right")
    return WorldSummary(
        out=out,
        frames=len(results),
        images=len(results) * len(settings.cameras),
        records={name: len(records) for name, records in _files(results, settings).items()},
        action_shares={name: round(actions[name] / max(1, len(results)), 4) for name in names},
        image_digest=hashlib.sha256("".join(result.image_digest for result in results).encode()).hexdigest(),
    )


def _write_manifest(path: Path, summary: WorldSummary, settings: WorldSettings, digests: dict[str, str]) -> None:
    kept = {name: value for name, value in asdict(settings).items() if name != "workers"}  # it changes no byte
    seeds = {split: [settings.scene_seeds(split).start, settings.scene_seeds(split).stop] for split in SPLITS}
    manifest = {
        "format": "drivekd-world",
        "format_version": FORMAT_VERSION,
        "drivekd_version": __version__,
        "settings": kept,
        "scene_seeds": seeds,
        "frames": summary.frames,
        "images": summary.images,
        "records": summary.records,
        "action_shares": summary.action_shares,
        "sha256": digests,
        "images_sha256": summary.image_digest,
    }
    path.write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")


def _needed_bytes(settings: WorldSettings) -> int:
    width_px, height_px = settings.image_size_px
    frames = sum(settings.num_frames(split) for split in SPLITS)
    per_frame = _BYTES_PER_FRAME + len(settings.cameras) * width_px * height_px * _BYTES_PER_PIXEL
    return int(frames * per_frame) + _BYTES_BESIDES


CAMERA_SETS = {"front": ("CAM_FRONT",), "six": CAMERAS}


def build_world_with_progress(
    out: Path, *, frames: int, labelled: int, validation: int, test: int, cameras: str, seed: int
) -> list[list[str]]:
    """Build a world into `out`; returns table rows. Raises UsageError, DataError."""
    if cameras not in CAMERA_SETS:
        raise UsageError(f"--cameras {cameras}: expected one of {', '.join(CAMERA_SETS)}")
    settings = WorldSettings(
        train_frames=frames,
        labelled_frames=min(labelled, frames),
        validation_frames=validation,
        test_frames=test,
        cameras=CAMERA_SETS[cameras],
        seed=seed,
    )
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
