"""Reading a bundle that nothing has changed.

The order of trust: open without following links -> size -> read -> hash -> manifest digest -> hand *those same bytes* on.
No file is opened twice, and nothing reaches an engine before every file has passed. A digest excludes accidents; malice needs
`expect_digest` or a signature, since whoever changes a file can also write a new manifest. POSIX only (openat, O_NOFOLLOW).
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path

from drivekd.errors import BundleError

from .manifest import DIGEST_FILE, ENGINES_DIR, MANIFEST_FILE, Manifest, manifest_from_bytes

MAX_MANIFEST_BYTES = 16 << 20  # a manifest is some 20 kB; the cap bounds what an unread file can make us allocate
MAX_FILE_BYTES = 64 << 30  # above any graph that a car can hold
READ_BYTES = (1 << 31) - 4096  # what Linux reads at once: an inline graph is one piece, never copied
FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")  # no separator, no leading dot: no way out of the bundle


@dataclass(frozen=True)
class Bundle:
    """A verified bundle in memory. digest: "sha256:..." of the manifest; files: the verified bytes by name."""

    path: Path
    digest: str
    manifest: Manifest
    files: dict[str, bytes]


def read_bundle(path: Path, *, expect_digest: str | None = None) -> Bundle:
    """Read and verify every byte of a bundle directory.

    expect_digest: "sha256:..." or the bare hex digits that the bundle must have.
    Raises BundleError naming the file that is missing, additional, a link, or changed.
    """
    directory = _open_directory(path)
    try:
        digest, manifest = _read_manifest(directory, path)
        if expect_digest is not None and digest != "sha256:" + expect_digest.removeprefix("sha256:"):
            raise BundleError(f"{path}: expected the bundle {expect_digest}, found {digest}")
        _check_listing(directory, manifest, path)
        files = {name: _read_file(directory, name, manifest, path) for name in manifest.files}
    finally:
        os.close(directory)
    return Bundle(path, digest, manifest, files)


def _open_directory(path: Path) -> int:
    try:
        return os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise BundleError(f"{path}: not a bundle directory ({error.strerror}). Make one: drivekd export") from error


def _read_manifest(directory: int, path: Path) -> tuple[str, Manifest]:
    data, digest = _read_bytes(directory, MANIFEST_FILE, MAX_MANIFEST_BYTES, path)
    stated, _ = _read_bytes(directory, DIGEST_FILE, 256, path)
    if stated != digest_line(digest):
        raise BundleError(
            f"{path}: {MANIFEST_FILE} or {DIGEST_FILE} was changed: {MANIFEST_FILE} has sha256 {digest}, "
            f"{DIGEST_FILE} says {stated[:64].decode('ascii', 'replace')}. Copy the bundle again or export anew."
        )
    return f"sha256:{digest}", manifest_from_bytes(data, str(path))


def digest_line(digest: str) -> bytes:
    """What bundle.sha256 holds: hex digits and a newline."""
    return f"{digest}\n".encode()


def _check_listing(directory: int, manifest: Manifest, path: Path) -> None:
    for name, entry in manifest.files.items():
        if not FILE_NAME.fullmatch(name) or name in (MANIFEST_FILE, DIGEST_FILE, ENGINES_DIR):
            raise BundleError(f"{path}: {MANIFEST_FILE} names {name!r}, which is no file of a bundle (a path out of it?)")
        if not 0 <= entry.bytes <= MAX_FILE_BYTES:
            raise BundleError(f"{path}: {MANIFEST_FILE} gives {name} {entry.bytes} bytes, the limit is {MAX_FILE_BYTES}")
    found = set(os.listdir(directory)) - {MANIFEST_FILE, DIGEST_FILE, ENGINES_DIR}
    if missing := sorted(set(manifest.files) - found):
        raise BundleError(f"{path}: {missing[0]} is missing. Copy the bundle again or export anew.")
    if extra := sorted(found - set(manifest.files)):
        raise BundleError(f"{path}: {extra[0]!r} does not belong to this bundle; take it out")


def _read_file(directory: int, name: str, manifest: Manifest, path: Path) -> bytes:
    entry = manifest.files[name]
    data, digest = _read_bytes(directory, name, entry.bytes, path)
    if len(data) != entry.bytes or digest != entry.sha256:
        raise BundleError(
            f"{path}: {name} was changed: expected {entry.bytes} bytes with sha256 {entry.sha256}, "
            f"found {len(data)} bytes with {digest}. Copy the bundle again or export anew."
        )
    return data


def _read_bytes(directory: int, name: str, limit_bytes: int, path: Path) -> tuple[bytes, str]:
    """Content and sha256 of one regular file directly inside the bundle, hashed as they lie in memory."""
    # O_NONBLOCK: opening a pipe put in a file's place must not wait for its writer
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        descriptor = os.open(name, flags, dir_fd=directory)
    except FileNotFoundError as error:
        raise BundleError(f"{path}: {name} is missing. Is this a bundle that drivekd export made?") from error
    except OSError as error:
        raise BundleError(f"{path}: {name} cannot be opened as a plain file of the bundle ({error.strerror})") from error
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise BundleError(f"{path}: {name} is not a regular file")
        if status.st_size > limit_bytes:
            raise BundleError(f"{path}: {name} was changed: expected at most {limit_bytes} bytes, found {status.st_size}")
        parts, remaining = [], status.st_size + 1  # one byte more, to see a file that grows
        while remaining and (part := os.read(descriptor, min(READ_BYTES, remaining))):
            parts.append(part)
            remaining -= len(part)
    finally:
        os.close(descriptor)
    data = parts[0] if len(parts) == 1 else b"".join(parts)
    return data, hashlib.sha256(data).hexdigest()
