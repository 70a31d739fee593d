"""engines/<target>/: what was built, from what, for what; and reading it back before anything of it is run.

    engine.json         EngineRecord below
    engine.sha256       sha256 of engine.json's raw bytes
    vision.engine, decoder.engine, timing.cache

An engine is an executable artefact. It lies outside the bundle's digest and signature, so it carries its own, and names the
bundle it was built from. Digests exclude accidents: truncation, a swap, another bundle's engine. Whoever can write the directory
can also write a new record; build engines on the car and keep the directory read-only.
"""

from __future__ import annotations

import json
import os
import platform
import re
from dataclasses import dataclass
from pathlib import Path

from drivekd.errors import BundleError
from drivekd.typed_json import TypedJsonError, dataclass_from_json, json_from_dataclass

from .manifest import ENGINES_DIR, FileEntry
from .reader import MAX_FILE_BYTES, Bundle, digest_line, read_plain_file

RECORD_FILE = "engine.json"
RECORD_DIGEST_FILE = "engine.sha256"
TIMING_CACHE_FILE = "timing.cache"
RECORD_VERSION = 1
MAX_RECORD_BYTES = 16 << 20
TARGET = re.compile(r"(rtx-)?sm\d{2,3}")


@dataclass(frozen=True)
class EnginePlatform:
    """What an engine runs on. device: "" = any GPU of this capability (compiled ahead of time)."""

    builder: str  # "tensorrt" or "tensorrt_rtx"
    version: str
    capability: int
    device: str
    machine: str

    @property
    def target(self) -> str:
        """Name of the directory: sm87, rtx-sm86."""
        return f"{'rtx-' if self.builder == 'tensorrt_rtx' else ''}sm{self.capability}"


def engine_platform(builder: str, version: str, capability: int, device: str) -> EnginePlatform:
    """With this machine's architecture."""
    return EnginePlatform(builder, version, capability, device, platform.machine())


@dataclass(frozen=True)
class EngineEntry:
    """profiles: name -> input -> (min, opt, max). peak_memory_bytes: of the building process."""

    file: FileEntry
    graph: str
    graph_sha256: str
    precision: str
    profiles: dict[str, dict[str, tuple[tuple[int, ...], ...]]]
    seconds: float
    peak_memory_bytes: int


@dataclass(frozen=True)
class EngineRecord:
    """engine.json. bundle: "sha256:..." of the bundle it was built from. timing_cache: None when the builder keeps none."""

    record_version: int
    drivekd_version: str
    bundle: str
    platform: EnginePlatform
    driver: str
    engines: dict[str, EngineEntry]
    timing_cache: FileEntry | None

    def to_bytes(self) -> bytes:
        """The bytes of engine.json."""
        return (json.dumps(json_from_dataclass(self), indent=1, allow_nan=False) + "\n").encode()

    def files(self) -> dict[str, FileEntry]:
        """Everything that the record vouches for."""
        found = {engine_file(name): entry.file for name, entry in self.engines.items()}
        return found if self.timing_cache is None else {**found, TIMING_CACHE_FILE: self.timing_cache}

    def files_of(self, graph: str) -> dict[str, FileEntry]:
        """The engines that were built from one graph."""
        return {engine_file(name): entry.file for name, entry in self.engines.items() if entry.graph == graph}


@dataclass(frozen=True)
class VerifiedEngines:
    """files: the verified bytes by name, what goes to deserialisation."""

    record: EngineRecord
    files: dict[str, bytes]

    def engine(self, name: str) -> bytes:
        """The bytes of "vision" or "decoder"."""
        return self.files[engine_file(name)]


def engine_file(name: str) -> str:
    """Its file in engines/<target>/. name: "vision" or "decoder"."""
    return f"{name}.engine"


def list_targets(bundle: Path) -> list[str]:
    """Names of the engine directories of a bundle, unverified."""
    folder = bundle / ENGINES_DIR
    return sorted(path.name for path in folder.iterdir() if TARGET.fullmatch(path.name)) if folder.is_dir() else []


def verify_engine(
    bundle: Bundle, target: str, *, here: EnginePlatform | None = None, graph: str | None = None
) -> VerifiedEngines:
    """Read engines/<target>/ and verify every byte; nothing is deserialised.

    here: the platform that will run it; None verifies the files alone, for those who only look. graph: the one whose engine alone
    is wanted; None = all files.
    Raises BundleError naming what is missing, changed, of another bundle, or of another device or TensorRT version.

        >>> from drivekd.export.trt import compile_ahead
        >>> from drivekd.runtime import read_bundle
        >>> rows = compile_ahead(bundle, targets=(86,))
        >>> verify_engine(read_bundle(bundle), "rtx-sm86").record.platform.capability
        86
    """
    found = read_engines(bundle.path, target, graph=graph)
    _check_origin(found.record, bundle, target)
    if here is not None:
        _check_platform(found.record.platform, here, bundle.path, target)
    return found


def read_engines(bundle: Path, target: str, *, graph: str | None = None) -> VerifiedEngines:
    """Read engines/<target>/ (or of one graph alone) against its own record, whatever bundle it was built from.

    Raises BundleError.
    """
    if not TARGET.fullmatch(target):
        raise BundleError(f"{target!r} is no engine target; expected a name like sm87 or rtx-sm86")
    source = bundle / ENGINES_DIR / target
    directory = _open_target(bundle, target)
    try:
        record = _read_record(directory, source)
        _check_listing(directory, record, source)
        wanted = record.files() if graph is None else record.files_of(graph)
        files = {name: _read_entry(directory, name, entry, source) for name, entry in wanted.items()}
    finally:
        os.close(directory)
    return VerifiedEngines(record, files)


def _open_target(bundle: Path, target: str) -> int:
    """A descriptor of engines/<target>, neither of the two a link."""
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
    opened = []
    try:
        opened.append(os.open(bundle, flags))
        opened.append(os.open(ENGINES_DIR, flags | os.O_NOFOLLOW, dir_fd=opened[-1]))
        return os.open(target, flags | os.O_NOFOLLOW, dir_fd=opened[-1])
    except OSError as error:
        raise BundleError(
            f"{bundle}: no engines for {target} ({error.strerror}). Build them on their device: drivekd export {bundle} --trt"
        ) from error
    finally:
        for descriptor in opened:
            os.close(descriptor)


def _read_record(directory: int, source: Path) -> EngineRecord:
    data, digest = read_plain_file(directory, RECORD_FILE, MAX_RECORD_BYTES, source)
    stated, _ = read_plain_file(directory, RECORD_DIGEST_FILE, 256, source)
    if stated != digest_line(digest):
        raise BundleError(f"{source}: {RECORD_FILE} or {RECORD_DIGEST_FILE} was changed. {_REBUILD}")
    try:
        value = json.loads(data)
        if not isinstance(value, dict) or value.get("record_version") != RECORD_VERSION:
            raise TypedJsonError(f"{RECORD_FILE}: this drivekd reads record version {RECORD_VERSION}")
        return dataclass_from_json(EngineRecord, value, RECORD_FILE)
    except (ValueError, RecursionError) as error:  # TypedJsonError and JSONDecodeError are ValueErrors
        raise BundleError(f"{source}: {error}. {_REBUILD}") from error


_REBUILD = "Build the engines again: drivekd export BUNDLE --trt"


def _check_listing(directory: int, record: EngineRecord, source: Path) -> None:
    stated = record.files()
    for name, entry in stated.items():
        if not re.fullmatch(r"[a-z]+\.(engine|cache)", name) or not 0 <= entry.bytes <= MAX_FILE_BYTES:
            raise BundleError(f"{source}: {RECORD_FILE} names {name!r} of {entry.bytes} bytes, which is no engine")
    found = set(os.listdir(directory)) - {RECORD_FILE, RECORD_DIGEST_FILE}
    if missing := sorted(set(stated) - found):
        raise BundleError(f"{source}: {missing[0]} is missing. {_REBUILD}")
    if extra := sorted(found - set(stated)):
        raise BundleError(f"{source}: {extra[0]!r} does not belong to these engines; take it out")


def _read_entry(directory: int, name: str, entry: FileEntry, source: Path) -> bytes:
    data, digest = read_plain_file(directory, name, entry.bytes, source)
    if len(data) != entry.bytes or digest != entry.sha256:
        raise BundleError(
            f"{source}: {name} was changed: expected {entry.bytes} bytes with sha256 {entry.sha256}, found {len(data)} bytes "
            f"with {digest}. {_REBUILD}"
        )
    return data


def _check_origin(record: EngineRecord, bundle: Bundle, target: str) -> None:
    source = bundle.path / ENGINES_DIR / target
    if record.platform.target != target:
        raise BundleError(f"{source}: these engines were built for {record.platform.target}. {_REBUILD}")
    if record.bundle != bundle.digest:
        raise BundleError(f"{source}: built from the bundle {record.bundle}, this bundle is {bundle.digest}. {_REBUILD}")


def _check_platform(built: EnginePlatform, here: EnginePlatform, bundle: Path, target: str) -> None:
    fields = [
        ("builder", built.builder, here.builder),
        ("version", f"{built.builder} {built.version}", f"{here.builder} {here.version}"),
        ("compute capability", f"SM {built.capability}", f"SM {here.capability}"),
        ("architecture", built.machine, here.machine),
    ]
    if built.device:
        fields.append(("device", built.device, here.device))
    for what, expected, found in fields:
        if expected != found:
            raise BundleError(
                f"{bundle / ENGINES_DIR / target}: the engines were built for the {what} {expected}, this machine has {found}. "
                f"Rebuild here: drivekd export {bundle} --trt"
            )
