"""Deferred files are verified before anything is returned, and again, from the same open file, whenever one is read."""

from __future__ import annotations

import gc
import os
from pathlib import Path
from typing import Any

import pytest
from small_bundle import small_files, write_small_bundle

import drivekd.runtime.bundle.reader as reading
from drivekd.errors import BundleError
from drivekd.runtime.bundle.reader import Bundle, DeferredFiles, read_bundle

LARGE = "tokenizer.json"  # of all files only decoder.data, of 160 bytes, is small here
CONTENT = small_files()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(reading, "LARGE_BYTES", 160)
    return write_small_bundle(tmp_path / "bundle")


@pytest.fixture
def bundle(folder: Path) -> Bundle:
    return read_bundle(folder, defer=True)


def open_files() -> list[str]:
    found = []
    for number in os.listdir("/proc/self/fd"):
        try:
            found.append(os.readlink(f"/proc/self/fd/{number}"))
        except FileNotFoundError:  # of the listing itself
            continue
    return found


def test_deferred_files_are_the_files(folder: Path, bundle: Bundle) -> None:
    assert isinstance(bundle.files, DeferredFiles)
    assert dict(bundle.files) == CONTENT == read_bundle(folder).files
    assert len(bundle.files) == len(CONTENT) and set(bundle.files) == set(CONTENT)
    assert bundle.files[LARGE] == bundle.files[LARGE] == bundle.files.get(LARGE)
    assert "nothing" not in bundle.files and bundle.files.get("nothing") is None
    with pytest.raises(KeyError):
        bundle.files["nothing"]


def test_large_files_are_not_kept(bundle: Bundle) -> None:
    assert bundle.files[LARGE] is not bundle.files[LARGE]
    assert bundle.files["decoder.data"] is bundle.files["decoder.data"]  # small


@pytest.mark.parametrize(
    "change", [lambda data: data[:-1], lambda data: data + b"!", lambda data: b"?" + data[1:], lambda data: b""]
)
def test_a_file_that_changes_behind_the_first_reading_is_refused(folder: Path, bundle: Bundle, change: Any) -> None:
    with (folder / LARGE).open("r+b") as file:  # the same inode
        file.write(change(CONTENT[LARGE]))
        file.truncate()
    with pytest.raises(BundleError, match=rf"{LARGE} was changed"):
        bundle.files[LARGE]


def test_a_file_put_in_the_place_of_a_verified_one_is_not_read(folder: Path, bundle: Bundle) -> None:
    (folder / "other").write_bytes(b"malice")
    os.replace(folder / "other", folder / LARGE)
    assert bundle.files[LARGE] == CONTENT[LARGE]
    (folder / LARGE).unlink()
    assert bundle.files[LARGE] == CONTENT[LARGE]


def test_no_file_is_opened_twice(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    open_descriptor = os.open

    def record(path: Any, flags: int, *args: Any, **kwargs: Any) -> int:
        opened.append(os.path.basename(path))
        return open_descriptor(path, flags, *args, **kwargs)

    monkeypatch.setattr(os, "open", record)
    bundle = read_bundle(folder, defer=True)
    assert dict(bundle.files) == CONTENT
    assert len(opened) == len(set(opened))


@pytest.mark.parametrize("name", sorted(CONTENT))
def test_every_file_passes_before_a_bundle_is_there(folder: Path, name: str) -> None:
    data = bytearray(CONTENT[name])
    data[len(data) // 2] ^= 1
    (folder / name).write_bytes(data)
    with pytest.raises(BundleError, match=rf"{name} was changed"):
        read_bundle(folder, defer=True)
    assert not any(str(folder) in path for path in open_files())


def test_descriptors_are_closed_with_what_they_belong_to(folder: Path) -> None:
    bundle = read_bundle(folder, defer=True)
    assert str(folder / LARGE) in open_files()
    del bundle.files[LARGE]
    assert str(folder / LARGE) not in open_files()
    assert LARGE not in bundle.files
    bundle.files[LARGE] = b"mine"
    assert bundle.files[LARGE] == b"mine"
    bundle.files["vision.onnx"] = b"mine"
    assert str(folder / "vision.onnx") not in open_files()
    del bundle
    gc.collect()
    assert not any(str(folder) in path for path in open_files())
