"""sha256 of files and of checkpoints: what caches and bundles are keyed on. Imports no torch."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

_known: dict[tuple[Path, int, int], str] = {}


def file_digest(path: Path) -> str:
    """sha256 (hex) of a file, read once for each (path, size, time of change). Raises OSError."""
    status = path.stat()
    key = (path, status.st_size, status.st_mtime_ns)
    if key not in _known:
        with path.open("rb") as file:
            _known[key] = hashlib.file_digest(file, "sha256").hexdigest()
    return _known[key]


def checkpoint_digest(checkpoint: Path) -> str:
    """ "sha256:..." over the names and contents of the files that decide a checkpoint's answers."""
    total = hashlib.sha256()
    for pattern in ("*.safetensors", "*.json", "*.jinja"):
        for path in sorted(checkpoint.glob(pattern)):
            total.update(f"{path.name} {file_digest(path)}\n".encode())
    return f"sha256:{total.hexdigest()}"


def json_digest(value: Any) -> str:
    """sha256 (hex) of a JSON value, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
