"""A run directory, how directories and files arrive whole, and the sha256 that caches and bundles are keyed on. Imports no torch.

config.yaml   the resolved configuration        metrics.jsonl    one record a step
versions.json what it ran with, and on what     tensorboard/
checkpoints/step-N/                             final/           what `drivekd export` takes
best/         the lowest validation loss, like final/
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import importlib.metadata
import json
import os
import platform
import re
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from drivekd import __version__
from drivekd.errors import DrivekdError, UsageError

TRACKED_PACKAGES = (
    "torch",
    "transformers",
    "accelerate",
    "peft",
    "tokenizers",
    "safetensors",
    "numpy",
    "pillow",
    "onnx",
    "onnxscript",
    "onnxruntime",
    "onnxruntime-gpu",
    "tensorrt",
    "tensorrt-rtx",
    "ros-jazzy-rclpy",
)


def versions() -> dict[str, str]:
    """drivekd, Python, platform and the packages that decide numbers; a missing package is left out."""
    found = {"drivekd": __version__, "python": platform.python_version(), "platform": platform.platform()}
    for name in TRACKED_PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


LEFTOVER_AGE_S = 3600  # a shared file is written in seconds, so an hour-old temporary has lost its writer


def write_whole(
    path: Path,
    content: bytes | str,
    *,
    shared: bool = False,
    durable: bool = False,
    beside: Path | None = None,
    mode: int | None = None,
) -> None:
    """Write a file whole or not at all, in place of an older one. Raises OSError. Text is written as UTF-8.

    shared, beside: as in whole_file. durable: on return not even a power cut takes the file away. mode: the file's permissions,
    whatever the umask; None: what the umask leaves.
    """
    data = content.encode() if isinstance(content, str) else content
    with whole_file(path, shared=shared, beside=beside) as temporary:
        if mode is not None:
            temporary.touch(mode)  # before there is anything to read
            temporary.chmod(mode)
        with temporary.open("wb") as file:
            file.write(data)
            if durable:
                file.flush()
                os.fsync(file.fileno())
    if durable:
        _sync_directory(path.parent)


def write_whole_json(path: Path, value: object) -> None:
    """write_whole for a JSON value, indented for people."""
    write_whole(path, json.dumps(value, indent=2) + "\n")


@contextmanager
def whole_file(path: Path, *, shared: bool = False, beside: Path | None = None) -> Iterator[Path]:
    """Yield a temporary name that becomes `path` when the block, which writes it, ends, and vanishes when the block fails.

    shared: several processes may write `path` at once, so the name is this writer's own, and what a kill leaves is for
    remove_leftovers; else the next writer of `path` takes the same name. beside: a path on the same file system; the temporary
    lies beside it and not beside `path`.
    """
    names = [path.name] if beside is None else [beside.name, path.name]
    own = [secrets.token_hex(8)] if shared else []
    temporary = (beside or path).with_name(".".join(["", *names, *own, "tmp"]))
    renamed = False
    try:
        yield temporary
        temporary.replace(path)
        renamed = True
    finally:
        if not renamed:  # behind the rename this name may be the next writer's
            temporary.unlink(missing_ok=True)


@contextmanager
def whole_directory(path: Path, *, needed_bytes: int = 0, error_type: type[DrivekdError] = DrivekdError) -> Iterator[Path]:
    """Yield a temporary sibling that becomes `path` at the end of the block, or vanishes when the block fails.

    An existing `path` is replaced, and what a killed writer of it left is removed. Raises error_type when the disk has no room
    for needed_bytes, or is full before the block ends.
    """
    path = path.resolve()  # a link to a directory stays one
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_dead_writers(path)
    _check_room(path, needed_bytes, error_type)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.mkdir()
        yield temporary
        if path.exists():
            shutil.rmtree(path)
        temporary.replace(path)
    except (OSError, SafetensorError) as error:
        if not disk_is_full(error):
            raise
        raise error_type(f"{path}: no space left on the disk; nothing was left half-written. Free space and run again") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def remove_leftovers(folder: Path, names: str = "*", *, age_s: float = 0) -> None:
    """Delete what killed writers of files and directories left in a folder; names: a pattern of what they were writing.

    age_s: younger ones stay, since a live process may be writing them.
    """
    for leftover in folder.glob(f".{names}.*.tmp"):
        # Another process may be quicker, and another user's file is not ours to delete.
        with contextlib.suppress(FileNotFoundError, PermissionError):
            if age_s and time.time() - leftover.stat().st_mtime < age_s:
                continue
            if leftover.is_dir():
                shutil.rmtree(leftover, ignore_errors=True)
            else:
                leftover.unlink()


def _remove_dead_writers(path: Path) -> None:
    """What whole_directory left of this path: `.b.123.tmp`, not its sibling's `.b.int8.123.tmp`; nothing of a live process."""
    ours = re.compile(rf"\.{re.escape(path.name)}\.(\d+)(\.fp32)?\.tmp")
    for leftover in path.parent.iterdir():
        if (match := ours.fullmatch(leftover.name)) and not _is_alive(int(match[1])):
            shutil.rmtree(leftover, ignore_errors=True)


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return process != os.getpid()  # this process has begun to write it just now, or has its predecessor's number


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _check_room(path: Path, needed_bytes: int, error_type: type[DrivekdError]) -> None:
    free_bytes = shutil.disk_usage(path.parent).free
    if free_bytes < needed_bytes:
        raise error_type(
            f"{path}: needs about {needed_bytes / 1e6:,.1f} MB, the disk has {free_bytes / 1e6:,.1f} MB free. "
            "Free space and run again"
        )


def disk_is_full(error: OSError | SafetensorError) -> bool:
    """Whether the disk, or this user's part of it, has no room left.

    safetensors writes in Rust and raises its own error without an errno; the number is in Rust's text of it.
    """
    full = (errno.ENOSPC, errno.EDQUOT)
    return getattr(error, "errno", None) in full or any(f"(os error {number})" in str(error) for number in full)


def refuse_non_empty(path: Path, advice: str) -> None:
    """Raise UsageError when `path` is a file or holds anything."""
    if path.is_file() or (path.is_dir() and any(path.iterdir())):
        raise UsageError(f"{path} is not empty; {advice}")


_known: dict[tuple[int, ...], str] = {}
_SETTLED_NS = 2_000_000_000  # a file changed more recently may change again within one tick of the file system's clock


def file_digest(path: Path) -> str:
    """sha256 (hex) of a file, read once for each file, size and time of change. Raises OSError."""
    status = path.stat()
    key = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
    if key in _known:
        return _known[key]
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 24):  # hashlib.file_digest needs Python 3.11
            digest.update(block)
    if time.time_ns() - status.st_mtime_ns > _SETTLED_NS:
        _known[key] = digest.hexdigest()
    return digest.hexdigest()


def checkpoint_digest(checkpoint: Path) -> str:
    """ "sha256:..." over the names and contents of the files that decide a checkpoint's answers; what they are worth does not."""
    total = hashlib.sha256()
    for pattern in ("*.safetensors", "*.json", "*.jinja", "merges.txt"):
        for path in sorted(path for path in checkpoint.glob(pattern) if path.name != "calibration.json"):
            total.update(f"{path.name} {file_digest(path)}\n".encode())
    return f"sha256:{total.hexdigest()}"


TRACES_FILE = "data_traces.safetensors"  # of training data (drivekd/data/traces.py); lies beside weights and is none


def weight_files(directory: Path) -> list[Path]:
    """The safetensors files of a checkpoint's or an adapter's directory that hold weights, by name."""
    return sorted(path for path in directory.glob("*.safetensors") if path.name != TRACES_FILE)


def json_digest(value: Any) -> str:
    """sha256 (hex) of a JSON value, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
