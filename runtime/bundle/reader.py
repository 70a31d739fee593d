"""Reading a bundle that nothing has changed.

The order of trust: open without following links -> size -> read -> hash -> manifest digest -> signature -> every file's digest ->
the graphs are what the manifest says -> hand *those same bytes* on. No file is opened twice, and nothing reaches an engine before
every file has passed. A digest excludes accidents; malice needs `expect_digest` or a signature with `public_key`, since whoever
changes a file can also write a new manifest. POSIX only (openat, O_NOFOLLOW).

A session defers its large files, since not all weights can lie in memory beside the engines' own: all are read and all pass
first; then an engine's weights are read once more from the descriptor that is still open, hashed once more, and *those* bytes are
handed on. What an engine gets are bytes with the digest of the manifest, or there is an error.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
import stat
import weakref
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from drivekd.errors import BundleError

from .graph_contract import check_graphs
from .manifest import DIGEST_FILE, ENGINES_DIR, MANIFEST_FILE, FileEntry, Manifest, manifest_from_bytes
from .onnx_file import OnnxFile
from .signature import MAX_SIGNATURE_BYTES, SIGNATURE_FILE, SignatureState, check_signed, verified_digests


class DeferredFiles(MutableMapping[str, bytes]):
    """Verified bytes by name. What is deleted, or let go with the mapping, is closed."""

    def __init__(self, held: Mapping[str, bytes], descriptors: Mapping[str, int], read: Callable[[int, str], bytes]) -> None:
        """held: the small files. descriptors: of the large ones, open, now this mapping's. read(descriptor, name): the bytes,
        verified; raises BundleError."""
        self._held = dict(held)
        self._descriptors = dict(descriptors)
        self._read = read
        weakref.finalize(self, _close_all, self._descriptors)

    def __getitem__(self, name: str) -> bytes:
        descriptor = self._descriptors.get(name)
        return self._held[name] if descriptor is None else self._read(descriptor, name)

    def __setitem__(self, name: str, data: bytes) -> None:
        if name in self:
            del self[name]
        self._held[name] = data

    def __delitem__(self, name: str) -> None:
        if name in self._descriptors:
            os.close(self._descriptors.pop(name))
        else:
            del self._held[name]

    def __contains__(self, name: object) -> bool:
        return name in self._held or name in self._descriptors  # the base class would read the file

    def __iter__(self) -> Iterator[str]:
        yield from (*self._held, *self._descriptors)

    def __len__(self) -> int:
        return len(self._held) + len(self._descriptors)


def _close_all(descriptors: Mapping[str, int]) -> None:
    for descriptor in descriptors.values():
        os.close(descriptor)


MAX_MANIFEST_BYTES = 16 << 20  # a manifest is some 20 kB; the cap bounds what an unread file can make us allocate
MAX_FILE_BYTES = 64 << 30  # above any graph that a car can hold
LARGE_BYTES = 16 << 20  # of a file that can be deferred
READ_BYTES = 1 << 30  # of one call; what needs a second one is copied once
READERS = 2  # files at a time: reading and hashing leave the interpreter's lock
OWN_NAMES = {MANIFEST_FILE, DIGEST_FILE, SIGNATURE_FILE, ENGINES_DIR}  # in the folder, but not in the manifest
FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")  # no separator, no leading dot: no way out of the bundle


@dataclass(frozen=True)
class Bundle:
    """A verified bundle in memory.

    digest: "sha256:..." of the manifest. files: the verified bytes by name. signature: "unsigned", "unchecked" (there is one, but
    no key was given) or "verified". graphs: what was read of the ONNX files, by name as in the manifest.
    """

    path: Path
    digest: str
    manifest: Manifest
    files: MutableMapping[str, bytes]
    signature: SignatureState = "unsigned"
    graphs: Mapping[str, OnnxFile] = field(default_factory=dict)


def read_bundle(path: Path, *, expect_digest: str | None = None, public_key: Path | None = None, defer: bool = False) -> Bundle:
    """Read and verify every byte of a bundle directory, and that its graphs are what its manifest says.

    expect_digest: "sha256:..." or the bare hex digits that the bundle must have. public_key: PEM file; the bundle must then be
    signed by its owner. defer: let large files go when everything has passed; each time one is taken out of `files` it is read
    and verified again.
    Raises BundleError naming the file that is missing, additional, a link, changed or not signed; UsageError: the key is none.

        >>> read_bundle(bundle).manifest.precision
        'fp32'
        >>> read_bundle(bundle, expect_digest="sha256:0123")
        Traceback (most recent call last):
        ...
        drivekd.errors.BundleError: ...: expected the bundle sha256:0123, found sha256:...
    """
    directory = _open_directory(path)
    try:
        data, digest = _read_manifest(directory, path)
        if expect_digest is not None and digest != expect_digest.removeprefix("sha256:"):
            raise BundleError(f"{path}: expected the bundle {expect_digest}, found sha256:{digest}")
        signature, signed = _read_signature(directory, digest, public_key, path)
        manifest = manifest_from_bytes(data, str(path))
        if signature == "verified":
            check_signed(signed, signed_digests(manifest, digest), str(path))
        _check_listing(directory, manifest, path)
        with ExitStack() as opened:
            descriptors = {name: _opened(opened, directory, name, path) for name in manifest.files}
            files = _read_files(descriptors, manifest, path)
            graphs = check_graphs(manifest, files, str(path))
            kept = _deferred(files, descriptors, manifest, path) if defer else files
    finally:
        os.close(directory)
    return Bundle(path, f"sha256:{digest}", manifest, kept, signature, graphs)


def signed_digests(manifest: Manifest, digest: str) -> dict[str, str]:
    """sha256 (hex) by name of all that a signature covers. digest: of the manifest's bytes, with or without "sha256:"."""
    digest = digest.removeprefix("sha256:")
    own = {MANIFEST_FILE: digest, DIGEST_FILE: hashlib.sha256(digest_line(digest)).hexdigest()}
    return {**{name: entry.sha256 for name, entry in manifest.files.items()}, **own}


def _open_directory(path: Path) -> int:
    try:
        return os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise BundleError(f"{path}: not a bundle directory ({error.strerror}). Make one: drivekd export") from error


def _read_manifest(directory: int, path: Path) -> tuple[bytes, str]:
    data, digest = read_plain_file(directory, MANIFEST_FILE, MAX_MANIFEST_BYTES, path)
    stated, _ = read_plain_file(directory, DIGEST_FILE, 256, path)
    if stated != digest_line(digest):
        raise BundleError(
            f"{path}: {MANIFEST_FILE} or {DIGEST_FILE} was changed: {MANIFEST_FILE} has sha256 {digest}, "
            f"{DIGEST_FILE} says {stated[:64].decode('ascii', 'replace')}. Copy the bundle again or export anew."
        )
    return data, digest


def _read_signature(directory: int, digest: str, public_key: Path | None, path: Path) -> tuple[SignatureState, dict[str, str]]:
    """State and signed digests. The manifest is compared here, before anything in it is believed."""
    signed = SIGNATURE_FILE in os.listdir(directory)
    data = read_plain_file(directory, SIGNATURE_FILE, MAX_SIGNATURE_BYTES, path)[0] if signed else b""
    if public_key is None:
        return ("unchecked" if signed else "unsigned"), {}
    if not signed:
        raise BundleError(
            f"{path} is not signed ({SIGNATURE_FILE} is missing), but a public key was given. Do not use this bundle."
        )
    digests = verified_digests(data, public_key, str(path))
    check_signed({MANIFEST_FILE: digests.get(MANIFEST_FILE, "nothing")}, {MANIFEST_FILE: digest}, str(path))
    return "verified", digests


def digest_line(digest: str) -> bytes:
    """What bundle.sha256 holds: hex digits and a newline."""
    return f"{digest}\n".encode()


def _check_listing(directory: int, manifest: Manifest, path: Path) -> None:
    for name, entry in manifest.files.items():
        if not FILE_NAME.fullmatch(name) or name in OWN_NAMES:
            raise BundleError(f"{path}: {MANIFEST_FILE} names {name!r}, which is no file of a bundle (a path out of it?)")
        if not 0 <= entry.bytes <= MAX_FILE_BYTES:
            raise BundleError(f"{path}: {MANIFEST_FILE} gives {name} {entry.bytes} bytes, the limit is {MAX_FILE_BYTES}")
    found = set(os.listdir(directory)) - OWN_NAMES
    if missing := sorted(set(manifest.files) - found):
        raise BundleError(f"{path}: {missing[0]} is missing. Copy the bundle again or export anew.")
    if extra := sorted(found - set(manifest.files)):
        raise BundleError(f"{path}: {extra[0]!r} does not belong to this bundle; take it out")


def _opened(stack: ExitStack, directory: int, name: str, path: Path) -> int:
    descriptor = _open_plain_file(directory, name, path)
    stack.callback(os.close, descriptor)
    return descriptor


def _read_files(descriptors: Mapping[str, int], manifest: Manifest, path: Path) -> MutableMapping[str, bytes]:
    with ThreadPoolExecutor(READERS) as pool:
        read = pool.map(lambda name: _verified(descriptors[name], name, manifest.files[name], path), descriptors)
        return dict(zip(descriptors, read, strict=True))


def _deferred(
    files: Mapping[str, bytes], descriptors: Mapping[str, int], manifest: Manifest, path: Path
) -> MutableMapping[str, bytes]:
    large = {name for name, data in files.items() if len(data) > LARGE_BYTES}
    return DeferredFiles(
        {name: data for name, data in files.items() if name not in large},
        {name: os.dup(descriptors[name]) for name in large},  # the same open file: a name that changes hands changes nothing
        lambda descriptor, name: _verified(descriptor, name, manifest.files[name], path),
    )


def _verified(descriptor: int, name: str, entry: FileEntry, path: Path) -> bytes:
    data, digest = _read_open_file(descriptor, name, entry.bytes, path)
    if len(data) != entry.bytes or digest != entry.sha256:
        raise BundleError(
            f"{path}: {name} was changed: expected {entry.bytes} bytes with sha256 {entry.sha256}, "
            f"found {len(data)} bytes with {digest}. Copy the bundle again or export anew."
        )
    return data


def read_plain_file(directory: int, name: str, limit_bytes: int, path: Path) -> tuple[bytes, str]:
    """Content and sha256 (hex) of one regular file of a directory, opened once and never through a link. Raises BundleError."""
    descriptor = _open_plain_file(directory, name, path)
    try:
        return _read_open_file(descriptor, name, limit_bytes, path)
    finally:
        os.close(descriptor)


def _open_plain_file(directory: int, name: str, path: Path) -> int:
    # O_NONBLOCK: opening a pipe put in a file's place must not wait for its writer
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        return os.open(name, flags, dir_fd=directory)
    except FileNotFoundError as error:
        raise BundleError(f"{path}: {name} is missing. Is this a bundle that drivekd export made?") from error
    except OSError as error:
        raise BundleError(f"{path}: {name} cannot be opened as a plain file of the bundle ({error.strerror})") from error


def _read_open_file(descriptor: int, name: str, limit_bytes: int, path: Path) -> tuple[bytes, str]:
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        raise BundleError(f"{path}: {name} is not a regular file")
    if status.st_size > limit_bytes:
        raise BundleError(f"{path}: {name} was changed: expected at most {limit_bytes} bytes, found {status.st_size}")
    end = status.st_size + 1  # one byte more, to see a file that grows
    os.lseek(descriptor, 0, os.SEEK_SET)
    content = io.BytesIO(os.read(descriptor, min(READ_BYTES, end)))  # no copy of it until a second part comes
    read = content.seek(0, io.SEEK_END)
    while read < end and (part := os.read(descriptor, min(READ_BYTES, end - read))):
        read += content.write(part)
    data = content.getvalue()
    return data, hashlib.sha256(data).hexdigest()
