"""A thousand seeded ways to change a bundle: every one is refused before any engine or graph is loaded.

The bundle is small (some 10 kB, cases/small_bundle.py), so that a thousand copies take seconds; what is checked does not depend
on its size. `InferenceSession` raises here: a test that reaches it has let a changed file through.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import onnxruntime
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from small_bundle import recompute, small_files, small_manifest, write_manifest, write_small_bundle

from drivekd.errors import BundleError
from drivekd.export.signing import sign_bundle
from drivekd.runtime import check_bundle, load_bundle, read_bundle

pytestmark = pytest.mark.numerics

Rng: TypeAlias = np.random.Generator
LISTED = sorted(small_files())
ALL_FILES = [*LISTED, "bundle.sha256", "manifest.json"]
NUM_CHANGES = 1000
NUM_SIGNED = 200
NUM_EDITS = 600


class EngineReachedError(Exception):
    """Nothing but an untouched bundle may come this far."""


@pytest.fixture(autouse=True)
def no_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise EngineReachedError

    monkeypatch.setattr(onnxruntime, "InferenceSession", refuse)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_bundle(tmp_path_factory.mktemp("whole") / "bundle")


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder, key = tmp_path_factory.mktemp("keys"), ec.generate_private_key(ec.SECP256R1())
    pem, plain = serialization.Encoding.PEM, serialization.NoEncryption()
    (folder / "key.pem").write_bytes(key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain))
    public = key.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo)
    (folder / "key.pub").write_bytes(public)
    return folder / "key.pem", folder / "key.pub"


def one_byte(folder: Path, rng: Rng, files: list[str] = ALL_FILES) -> str:
    path = folder / rng.choice(files)
    data = bytearray(path.read_bytes())
    place = int(rng.integers(len(data)))
    data[place] ^= int(rng.integers(1, 256))
    path.write_bytes(data)
    return f"{path.name}, byte {place}"


def truncation(folder: Path, rng: Rng) -> str:
    path = folder / rng.choice(ALL_FILES)
    size = int(rng.integers(path.stat().st_size))
    os.truncate(path, size)
    return f"{path.name} cut to {size}"


def growth(folder: Path, rng: Rng) -> str:
    path = folder / rng.choice(ALL_FILES)
    path.write_bytes(path.read_bytes() + rng.bytes(int(rng.integers(1, 9))))
    return f"{path.name} longer"


def exchange(folder: Path, rng: Rng) -> str:
    first, second = rng.choice(ALL_FILES, 2, replace=False)
    (folder / first).rename(folder / "between")
    (folder / second).rename(folder / first)
    (folder / "between").rename(folder / second)
    return f"{first} and {second} exchanged"


def exchange_of_equals(folder: Path, rng: Rng) -> str:
    """Two files of one size: nothing but their digests tells them apart."""
    first, second = "golden.npz", "embedding.safetensors"
    contents = [(folder / name).read_bytes() for name in (first, second)]
    assert len(contents[0]) == len(contents[1])
    (folder / first).write_bytes(contents[1])
    if rng.integers(2):
        (folder / second).write_bytes(contents[0])
    return f"{first} and {second}, of one size"


def addition(folder: Path, rng: Rng) -> str:
    name = str(rng.choice(["more.onnx", ".hidden", "vision.onnx.data", "Vision.onnx", "decoder.gqa.onnx", "engines2", "a b"]))
    path = folder / name
    if rng.integers(3) == 0:
        path.mkdir()
    elif rng.integers(2):
        path.symlink_to("vision.onnx")
    else:
        path.write_bytes(rng.bytes(int(rng.integers(40))))
    return f"{name} added"


def removal(folder: Path, rng: Rng) -> str:
    path = folder / rng.choice(ALL_FILES)
    path.unlink()
    return f"{path.name} removed"


def link(folder: Path, rng: Rng) -> str:
    """The right content behind a link: what is behind it may be another file a moment later."""
    path = folder / rng.choice(ALL_FILES)
    outside = folder.parent / "outside"
    path.rename(outside)
    path.symlink_to(outside if rng.integers(2) else "../outside")
    return f"{path.name} is a link"


def no_file(folder: Path, rng: Rng) -> str:
    path = folder / rng.choice(ALL_FILES)
    path.unlink()
    if rng.integers(2):
        os.mkfifo(path)
    else:
        path.mkdir()
    return f"{path.name} is no file"


def new_name(folder: Path, rng: Rng) -> str:
    path = folder / rng.choice(ALL_FILES)
    path.rename(path.with_name(path.name.upper()))
    return f"{path.name} renamed"


CHANGES: list[tuple[Callable[[Path, Rng], str], int]] = [
    (one_byte, 500),
    (truncation, 150),
    (growth, 50),
    (exchange, 80),
    (exchange_of_equals, 20),
    (addition, 60),
    (removal, 30),
    (link, 60),
    (no_file, 30),
    (new_name, 20),
]


def copies(whole: Path, place: Path, count: int) -> Iterator[Path]:
    """The same bundle, new each time, in an otherwise empty folder."""
    for _ in range(count):
        folder = place / "case" / "bundle"
        shutil.copytree(whole, folder)
        yield folder
        shutil.rmtree(place / "case")


def stopped(folder: Path) -> BundleError | EngineReachedError:
    """Loading always ends in one of the two here."""
    with pytest.raises((BundleError, EngineReachedError)) as found:
        load_bundle(folder)
    return found.value


def test_the_untouched_bundle_reaches_its_engine(whole: Path) -> None:
    for start in (load_bundle, check_bundle):
        with pytest.raises(EngineReachedError):
            start(whole)


def test_there_are_a_thousand_changes() -> None:
    assert sum(count for _, count in CHANGES) == NUM_CHANGES


@pytest.mark.parametrize(("change", "count"), CHANGES, ids=lambda value: getattr(value, "__name__", str(value)))
def test_every_change_is_refused(whole: Path, tmp_path: Path, change: Callable[[Path, Rng], str], count: int) -> None:
    rng = np.random.default_rng(len(change.__name__))
    for folder in copies(whole, tmp_path, count):
        what = change(folder, rng)
        error = stopped(folder)
        assert isinstance(error, BundleError), f"let through: {what}"
        assert str(folder) in str(error), what


def test_recomputed_digests_are_refused_when_signed(whole: Path, tmp_path: Path, keys: tuple[Path, Path]) -> None:
    """The changes that a manifest can be made for: content changed, exchanged, or one file more, with every digest right."""
    signed = tmp_path / "signed"
    shutil.copytree(whole, signed)
    sign_bundle(signed, keys[0])
    manifest, rng = small_manifest(small_files()), np.random.default_rng(0)
    for index, folder in enumerate(copies(signed, tmp_path, NUM_SIGNED)):
        if index % 4 == 0:
            exchange_of_equals(folder, rng)
        elif index % 4 == 1:
            path = folder / rng.choice(LISTED)
            os.truncate(path, int(rng.integers(path.stat().st_size)))
        else:
            one_byte(folder, rng, LISTED)
        recompute(folder, manifest)
        with pytest.raises(BundleError, match="is not what was signed"):
            load_bundle(folder, public_key=keys[1])
    assert read_bundle(signed, public_key=keys[1]).signature == "verified"


def places(value: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) of a JSON value."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    found = []
    for key, child in items:
        found += [(value, key), *places(child)]
    return found


STRANGE: list[Any] = [
    None, True, -1, 0, 1, 1 << 40, 1 << 80, -(1 << 80), 0.5, 1e308, float("inf"), float("-inf"), float("nan"), "", "x", "../x",
    "/etc/hostname", "a\0b", "é" * 300, "{x}", "{", "vision.onnx", [], [[]], {}, {"x": {}}, [1, 2, 3], ["x"] * 50,
]  # fmt: skip


def edit(value: Any, rng: Rng) -> str:
    """Change one place of a manifest at random: another value, away with it, twice, or a new key."""
    container, key = (found := places(value))[int(rng.integers(len(found)))]
    kind = int(rng.integers(5))
    if kind == 0:
        del container[key]
    elif kind == 1 and isinstance(container, list):
        container.append(container[key])
    elif kind == 1:
        container["surprise"] = container[key]
    else:
        container[key] = STRANGE[int(rng.integers(len(STRANGE)))]
    return f"{kind} at {key!r}"


def test_a_manifest_edited_by_hand_never_crashes(whole: Path, tmp_path: Path) -> None:
    """With right digests. A BundleError that names the bundle, or, where the edit is harmless (a note), the engine is reached."""
    rng, refused = np.random.default_rng(7), 0
    original = (whole / "manifest.json").read_bytes()
    for folder in copies(whole, tmp_path, NUM_EDITS):
        value = json.loads(original)
        what = edit(value, rng)
        write_manifest(folder, json.dumps(value).encode())
        error = stopped(folder)
        if isinstance(error, BundleError):
            assert str(folder) in str(error), what
            refused += 1
    assert refused > NUM_EDITS * 0.7  # most places of a manifest decide something


def test_a_manifest_of_changed_bytes_never_crashes(whole: Path, tmp_path: Path) -> None:
    """Any byte of the manifest, digest recomputed: an error of ours or the same bundle in other words."""
    rng = np.random.default_rng(11)
    original = (whole / "manifest.json").read_bytes()
    for folder in copies(whole, tmp_path, NUM_SIGNED):
        data = bytearray(original)
        data[int(rng.integers(len(data)))] = int(rng.integers(256))
        write_manifest(folder, bytes(data))
        stopped(folder)


HUGE = b"9" * (sys.get_int_max_str_digits() + 1)


@pytest.mark.parametrize("number", [HUGE, b"1e999", b"-0", b"NaN", b"Infinity"], ids=["digits", "float", "-0", "nan", "inf"])
def test_strange_numbers_never_crash(whole: Path, tmp_path: Path, number: bytes) -> None:
    for folder in copies(whole, tmp_path, 1):
        write_manifest(folder, (folder / "manifest.json").read_bytes().replace(b'"size_px": 2', b'"size_px": ' + number))
        with pytest.raises(BundleError, match="bundle"):
            load_bundle(folder)
