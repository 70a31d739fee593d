"""sha256 of files and of checkpoints: what caches and bundles are keyed on. Imports no torch."""

from __future__ import annotations

import hashlib
import json
import time
from pathlib import Path
from typing import Any

_known: dict[tuple[Path, int, int], str] = {}
_SETTLED_NS = 2_000_000_000  # a file changed more recently may change again within one tick of the file system's clock


def file_digest(path: Path) -> str:
    """sha256 (hex) of a file, read once for each (path, size, time of change). Raises OSError."""
    status = path.stat()
    key = (path, status.st_size, status.st_mtime_ns)
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
    """ "sha256:..." over the names and contents of the files that decide a checkpoint's answers."""
    total = hashlib.sha256()
    for pattern in ("*.safetensors", "*.json", "*.jinja", "merges.txt"):
        for path in sorted(checkpoint.glob(pattern)):
            total.update(f"{path.name} {file_digest(path)}\n".encode())
    return f"sha256:{total.hexdigest()}"


def json_digest(value: Any) -> str:
    """sha256 (hex) of a JSON value, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
