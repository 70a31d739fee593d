"""Files that are on the disk whole or not at all, even after a kill or a power cut, and the room they need.

`run_directory` writes a run's own small files; this is for gigabytes that several processes write for days: a name is unique to
its writer, the bytes are on the disk before the name appears, and a write that would leave no reserve is refused.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import time
from pathlib import Path

from drivekd.errors import TrainingError

RESERVE_BYTES = 1 << 30
"""Left free at all times: logs and the system go on when a store has taken all it may. Add room for checkpoints yourself."""

_LEFTOVER_AGE_S = 3600  # a shard is written in seconds, so an hour-old temporary has lost its writer


def require_space(root: Path, needed_bytes: int, what: str) -> None:
    """Raise TrainingError unless the disk of `root` (which need not exist yet) holds needed_bytes and RESERVE_BYTES more.

    what: the thing that needs the room; it opens the message, as in "the teacher cache of 360,000 samples".
    """
    free_bytes = _free_bytes(root)
    lacking_bytes = needed_bytes + RESERVE_BYTES - free_bytes
    if lacking_bytes > 0:
        raise TrainingError(
            f"{root}: {what} needs {_megabytes(needed_bytes)} and {_megabytes(RESERVE_BYTES)} must stay free, but the disk has "
            f"{_megabytes(free_bytes)} free. Free {_megabytes(lacking_bytes)} more, choose another disk, or store less"
        )


def write_durable(path: Path, data: bytes) -> None:
    """Write beside, fsync, rename, fsync the directory (made when missing): then not even a power cut takes the file away.

    Raises TrainingError with the bytes wanted and free when the disk is full or fails; nothing half-written stays.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _write_then_rename(path, data)
        _sync_directory(path.parent)
    except OSError as error:
        raise TrainingError(
            f"{path}: could not be written ({error}): {_megabytes(len(data))} wanted, {_megabytes(_free_bytes(path))} free on "
            "the disk. Nothing half-written was left and earlier files are whole; free space and run again"
        ) from error


def remove_leftovers(directory: Path) -> None:
    """Delete what killed writers left, but nothing that a live one may still be writing."""
    for path in directory.glob(".*.tmp"):
        # Another rank may be quicker, and another user's file is not ours to delete.
        with contextlib.suppress(FileNotFoundError, PermissionError):
            if time.time() - path.stat().st_mtime > _LEFTOVER_AGE_S:
                path.unlink()


def _write_then_rename(path: Path, data: bytes) -> None:
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    file = temporary.open("xb")
    try:
        with file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _free_bytes(path: Path) -> int:
    path = path.absolute()
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free


def _megabytes(num_bytes: int) -> str:
    return f"{num_bytes / 1e6:,.1f} MB"
