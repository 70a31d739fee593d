"""An engine that was changed, swapped or built elsewhere is refused before anything could deserialise it."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_bundle import write_small_bundle

from drivekd.errors import BundleError
from drivekd.runtime.bundle.engine_record import (
    EngineEntry,
    EnginePlatform,
    EngineRecord,
    list_targets,
    read_engines,
    verify_engine,
)
from drivekd.runtime.bundle.manifest import FileEntry
from drivekd.runtime.bundle.reader import Bundle, digest_line, read_bundle

ORIN = EnginePlatform("tensorrt", "10.3.0.30", 87, "Orin", "aarch64")
FILES = {"vision.engine": b"vision" * 40, "decoder.engine": b"decode" * 40, "timing.cache": b"cache"}  # engines of equal size


def entry(data: bytes) -> FileEntry:
    return FileEntry(hashlib.sha256(data).hexdigest(), len(data))


def engine_entry(data: bytes) -> EngineEntry:
    shapes = {"decode": {"logits": ((1, 2), (3, 4), (5, 6))}}
    return EngineEntry(entry(data), "vision", "00", "fp32", shapes, 1.5, 1000)


def make_record(digest: str, **changed: Any) -> EngineRecord:
    engines = {name: engine_entry(FILES[f"{name}.engine"]) for name in ("vision", "decoder")}
    record = EngineRecord(1, "0", digest, ORIN, "540.4.0, CUDA 12.6", engines, entry(FILES["timing.cache"]))
    return dataclasses.replace(record, **changed)


def write_engines(bundle: Bundle, record: EngineRecord, target: str = "sm87") -> Path:
    folder = bundle.path / "engines" / target
    folder.mkdir(parents=True)
    for name, data in FILES.items():
        (folder / name).write_bytes(data)
    write_record(folder, record.to_bytes())
    return folder


def write_record(folder: Path, data: bytes) -> None:
    (folder / "engine.json").write_bytes(data)
    (folder / "engine.sha256").write_bytes(digest_line(hashlib.sha256(data).hexdigest()))


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return read_bundle(write_small_bundle(tmp_path / "bundle"))


@pytest.fixture
def engines(bundle: Bundle) -> Path:
    return write_engines(bundle, make_record(bundle.digest))


def test_unchanged_engines_are_read_whole(bundle: Bundle, engines: Path) -> None:
    found = verify_engine(bundle, "sm87", here=ORIN)
    assert found.record == make_record(bundle.digest)
    assert found.files == FILES
    assert found.engine("decoder") == FILES["decoder.engine"]
    assert list_targets(bundle.path) == ["sm87"]
    read_bundle(bundle.path)  # engines are no part of the bundle


def test_random_changes_of_one_byte_are_all_refused(bundle: Bundle, engines: Path) -> None:
    rng = np.random.default_rng(0)
    paths = sorted(engines.iterdir())
    for _ in range(300):
        path = paths[int(rng.integers(len(paths)))]
        data = path.read_bytes()
        changed = bytearray(data)
        changed[int(rng.integers(len(data)))] ^= int(rng.integers(1, 256))
        path.write_bytes(changed)
        with pytest.raises(BundleError, match="was changed"):
            verify_engine(bundle, "sm87", here=ORIN)
        path.write_bytes(data)
    verify_engine(bundle, "sm87", here=ORIN)


DAMAGE: dict[str, Callable[[Path], Any]] = {
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "longer": lambda path: path.write_bytes(path.read_bytes() + b"\n"),
    "missing": lambda path: path.unlink(),
    "a link": lambda path: path.rename(path.parent.parent / "elsewhere") and path.symlink_to(path.parent.parent / "elsewhere"),
    "a pipe": lambda path: (path.unlink(), os.mkfifo(path)),
}


@pytest.mark.parametrize("name", [*FILES, "engine.json", "engine.sha256"])
@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_is_refused_by_name(bundle: Bundle, engines: Path, name: str, damage: str) -> None:
    DAMAGE[damage](engines / name)
    with pytest.raises(BundleError, match=name):
        verify_engine(bundle, "sm87", here=ORIN)


def test_swapped_engines_are_refused(bundle: Bundle, engines: Path) -> None:
    vision, decoder = engines / "vision.engine", engines / "decoder.engine"
    data = vision.read_bytes()
    vision.write_bytes(decoder.read_bytes())
    decoder.write_bytes(data)
    with pytest.raises(BundleError, match=r"\.engine was changed"):
        verify_engine(bundle, "sm87", here=ORIN)


def test_engines_of_another_bundle_are_refused(bundle: Bundle) -> None:
    write_engines(bundle, make_record("sha256:" + 64 * "0"))
    with pytest.raises(BundleError, match="built from the bundle sha256:0000"):
        verify_engine(bundle, "sm87", here=ORIN)


def test_engines_of_another_target_are_refused_where_they_were_copied(bundle: Bundle) -> None:
    write_engines(bundle, make_record(bundle.digest), "sm110")
    with pytest.raises(BundleError, match="built for sm87"):
        verify_engine(bundle, "sm110", here=dataclasses.replace(ORIN, capability=110))


ELSEWHERE = {
    "builder": {"builder": "tensorrt_rtx"},
    "version": {"version": "10.3.0.31"},
    "compute capability": {"capability": 110},
    "architecture": {"machine": "x86_64"},
    "device": {"device": "Orin Nano"},
}


@pytest.mark.parametrize("what", ELSEWHERE)
def test_engines_of_another_platform_are_refused(bundle: Bundle, engines: Path, what: str) -> None:
    with pytest.raises(BundleError, match=rf"built for the {what} .* Rebuild here: drivekd export .* --trt"):
        verify_engine(bundle, "sm87", here=dataclasses.replace(ORIN, **ELSEWHERE[what]))
    verify_engine(bundle, "sm87")  # who only looks may look


def test_what_was_compiled_ahead_of_time_runs_on_any_gpu_of_its_capability(bundle: Bundle) -> None:
    ahead = EnginePlatform("tensorrt_rtx", "1.7", 86, "", "x86_64")
    write_engines(bundle, make_record(bundle.digest, platform=ahead), "rtx-sm86")
    verify_engine(bundle, "rtx-sm86", here=dataclasses.replace(ahead, device="RTX 3090"))


def test_a_record_with_right_digests_but_wrong_content_is_refused(bundle: Bundle, engines: Path) -> None:
    record = make_record(bundle.digest)
    for data in (
        b"[]",
        b"{",
        b'{"record_version": 2}',
        record.to_bytes().replace(b'"driver"', b'"drivers"'),
        dataclasses.replace(record, engines={"../../x": record.engines["vision"]}).to_bytes(),
        record.to_bytes().replace(b'"bytes": 240', b'"bytes": -1'),
    ):
        write_record(engines, data)
        with pytest.raises(BundleError):
            verify_engine(bundle, "sm87", here=ORIN)


@pytest.mark.parametrize("target", ["../sm87", "sm87/..", ".", "", "sm"])
def test_a_target_is_a_name_not_a_path(bundle: Bundle, engines: Path, target: str) -> None:
    with pytest.raises(BundleError, match="no engine target"):
        read_engines(bundle.path, target)


def test_links_in_the_way_and_strangers_are_refused(bundle: Bundle, engines: Path) -> None:
    (engines / "notes.txt").touch()
    with pytest.raises(BundleError, match=r"'notes\.txt' does not belong"):
        verify_engine(bundle, "sm87")
    (engines / "notes.txt").unlink()
    engines.rename(engines.with_name("moved"))
    engines.symlink_to(engines.with_name("moved"))
    with pytest.raises(BundleError, match="no engines for sm87"):
        verify_engine(bundle, "sm87")
    with pytest.raises(BundleError, match=r"no engines for sm110 .*drivekd export"):
        verify_engine(bundle, "sm110")
