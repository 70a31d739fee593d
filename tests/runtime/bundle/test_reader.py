"""A bundle with one changed byte is no bundle, and a manifest that lies about its graphs is refused. No engine sees any of it."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from small_bundle import small_files, small_manifest, write_manifest, write_small_bundle

from drivekd.errors import BundleError
from drivekd.runtime import load_bundle, read_bundle
from drivekd.runtime.bundle import reader as reading
from drivekd.runtime.bundle.manifest import FileEntry, Manifest, manifest_from_bytes

CONTENT = small_files()
ALL_FILES = [*CONTENT, "manifest.json", "bundle.sha256"]


def make_manifest() -> Manifest:
    return small_manifest(CONTENT)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_small_bundle(tmp_path / "bundle")


@pytest.fixture(autouse=True)
def no_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("an engine was given an unverified file")

    monkeypatch.setattr(onnxruntime, "InferenceSession", refuse)


def test_an_unchanged_bundle_is_read_whole(folder: Path) -> None:
    bundle = read_bundle(folder)
    assert bundle.files == CONTENT
    assert bundle.digest == "sha256:" + (folder / "bundle.sha256").read_text().strip()
    assert bundle.manifest == make_manifest()


@pytest.mark.parametrize("name", ALL_FILES)
def test_one_flipped_bit_anywhere_is_refused(folder: Path, name: str) -> None:
    data = (folder / name).read_bytes()
    rng = np.random.default_rng(0)
    for place in {0, len(data) - 1, *rng.integers(0, len(data), 20).tolist()}:
        changed = bytearray(data)
        changed[place] ^= 1 << int(rng.integers(8))
        (folder / name).write_bytes(changed)
        with pytest.raises(BundleError, match="was changed"):
            load_bundle(folder)


DAMAGE: dict[str, Callable[[Path], Any]] = {
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "empty": lambda path: path.write_bytes(b""),
    "longer": lambda path: path.write_bytes(path.read_bytes() + b"\n"),
    "missing": lambda path: path.unlink(),
    "a link": lambda path: path.rename(path.parent.parent / "elsewhere") and path.symlink_to(path.parent.parent / "elsewhere"),
    "a broken link": lambda path: (path.unlink(), path.symlink_to("nowhere")),
    "a directory": lambda path: (path.unlink(), path.mkdir()),
    "a pipe": lambda path: (path.unlink(), os.mkfifo(path)),
}


@pytest.mark.parametrize("name", ALL_FILES)
@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_is_refused_by_name(folder: Path, name: str, damage: str) -> None:
    DAMAGE[damage](folder / name)
    with pytest.raises(BundleError) as refused:
        load_bundle(folder)
    assert name in str(refused.value)
    assert str(folder) in str(refused.value)


def test_a_file_too_many_is_refused(folder: Path) -> None:
    (folder / "more.onnx").write_bytes(b"x")
    with pytest.raises(BundleError, match=r"'more\.onnx' does not belong"):
        read_bundle(folder)


def test_engines_lie_outside_the_digest(folder: Path) -> None:
    digest = read_bundle(folder).digest
    (folder / "engines" / "orin").mkdir(parents=True)
    assert read_bundle(folder).digest == digest


@pytest.mark.parametrize("name", ["../secret", "/etc/hostname", "a/b", "..", ".hidden", "", "engines", "bundle.sig", "x\n"])
def test_no_path_leads_out_of_the_bundle(folder: Path, name: str) -> None:
    (folder.parent / "secret").write_bytes(b"s")
    manifest = make_manifest()
    files = {**manifest.files, name: FileEntry(hashlib.sha256(b"s").hexdigest(), 1)}
    write_manifest(folder, dataclasses.replace(manifest, files=files).to_bytes())
    with pytest.raises(BundleError, match="no file of a bundle"):
        read_bundle(folder)


def test_an_absurd_size_is_refused_before_reading(folder: Path) -> None:
    manifest = make_manifest()
    files = {**manifest.files, "vision.onnx": FileEntry("00", 1 << 60)}
    write_manifest(folder, dataclasses.replace(manifest, files=files).to_bytes())
    with pytest.raises(BundleError, match="the limit is"):
        read_bundle(folder)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda m: m.update(format_version=2), r"bundle format 2; this drivekd reads format 4"),
        (lambda m: m.pop("chat"), r"key 'chat' is missing"),
        (lambda m: m.update(colour="red"), r"unknown key 'colour'"),
        (lambda m: m["model"].update(num_layers=True), r"manifest\.json\.model\.num_layers: expected int, found True"),
        (lambda m: m["model"].update(num_layers="4"), r"model\.num_layers: expected int, found '4'"),
        (lambda m: m["images"].update(mean=[1, 2]), r"images\.mean: expected 3 values, found 2"),
        (lambda m: m.update(prompts=[]), r"prompts: expected dict"),
        (lambda m: m["graphs"]["vision"]["inputs"][0].update(dims=[None]), r"inputs\[0\]\.dims\[0\]: expected int or str"),
    ],
)
def test_a_manifest_of_another_shape_names_the_place(folder: Path, edit: Callable[[dict[str, Any]], Any], message: str) -> None:
    value = json.loads(make_manifest().to_bytes())
    edit(value)
    write_manifest(folder, json.dumps(value).encode())
    with pytest.raises(BundleError, match=message):
        read_bundle(folder)


@pytest.mark.parametrize("data", [b"", b"[]", b"null", b"{", b"\xff\xfe", b"[" * 100_000], ids=range(6))
def test_a_manifest_that_is_no_object_is_refused(folder: Path, data: bytes) -> None:
    write_manifest(folder, data)
    with pytest.raises(BundleError, match=r"not valid JSON|bundle format None"):
        read_bundle(folder)


def test_the_expected_digest_is_compared(folder: Path) -> None:
    digest = read_bundle(folder).digest
    assert read_bundle(folder, expect_digest=digest).digest == digest
    assert read_bundle(folder, expect_digest=digest.removeprefix("sha256:")).digest == digest
    with pytest.raises(BundleError, match="expected the bundle sha256:00"):
        read_bundle(folder, expect_digest="sha256:00")


def test_a_file_is_whole_however_many_reads_it_takes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file of many gigabytes takes many reads: the kernel gives at most 2 GiB at once."""
    monkeypatch.setattr(reading, "READ_BYTES", 7)
    assert read_bundle(folder).files == CONTENT


def test_a_file_that_grows_while_it_is_read_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = os.read

    def read_and_append(descriptor: int, size: int) -> bytes:
        with (folder / "decoder.data").open("ab") as file:
            file.write(b"more")
        return read(descriptor, size)

    monkeypatch.setattr(os, "read", read_and_append)
    with pytest.raises(BundleError, match=r"decoder\.data was changed"):
        read_bundle(folder)


def test_no_file_is_opened_twice(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was hashed is what is used: between two openings a file may become another."""
    opened: list[str] = []
    open_descriptor = os.open

    def record(path: Any, flags: int, *args: Any, **kwargs: Any) -> int:
        opened.append(str(path))
        assert flags & os.O_DIRECTORY or flags & os.O_NOFOLLOW
        return open_descriptor(path, flags, *args, **kwargs)

    monkeypatch.setattr(os, "open", record)
    read_bundle(folder)
    assert sorted(opened) == sorted([str(folder), *ALL_FILES])


def test_no_bundle_directory(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    for path in (tmp_path / "nothing", tmp_path / "file"):
        with pytest.raises(BundleError, match="not a bundle directory"):
            read_bundle(path)
    with pytest.raises(BundleError, match=r"manifest\.json is missing"):
        read_bundle(tmp_path)


def test_a_manifest_survives_its_own_bytes() -> None:
    manifest = make_manifest()
    assert manifest_from_bytes(manifest.to_bytes(), "here") == manifest
