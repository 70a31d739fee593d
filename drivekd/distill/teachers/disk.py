"""Gigabytes that several processes write for days: durable files, and the room they need.

The bytes are on the disk before the name appears, and a write that would leave no reserve is refused.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from drivekd.errors import TrainingError
from drivekd.files import write_whole

RESERVE_BYTES = 1 << 30
"""Left free at all times: logs and the system go on when a store has taken all it may. Add room for checkpoints yourself."""


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
    """Write a file that not even a power cut takes away; makes its directory.

    Raises TrainingError with the bytes wanted and free when the disk is full or fails; nothing half-written stays.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, data, shared=True, durable=True)
    except OSError as error:
        raise TrainingError(
            f"{path}: could not be written ({error}): {_megabytes(len(data))} wanted, {_megabytes(_free_bytes(path))} free on "
            "the disk. Nothing half-written was left and earlier files are whole; free space and run again"
        ) from error


def _free_bytes(path: Path) -> int:
    path = path.absolute()
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free


def _megabytes(num_bytes: int) -> str:
    return f"{num_bytes / 1e6:,.1f} MB"
