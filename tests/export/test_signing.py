"""Whoever changes a bundle can also write new digests, but no signature. Keys are made here; the format is model-signing's."""

from __future__ import annotations

import base64
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from small_bundle import recompute, small_files, small_manifest, write_small_bundle

from drivekd.errors import BundleError, UsageError
from drivekd.export.signing import sign_bundle
from drivekd.runtime import check_bundle, read_bundle
from drivekd.runtime.bundle.signature import pre_authentication
from drivekd.runtime.check_tables import check_tables

PEM = serialization.Encoding.PEM


def write_keys(folder: Path, private: Any) -> tuple[Path, Path]:
    """Private and public PEM file."""
    folder.mkdir(exist_ok=True)
    plain = serialization.NoEncryption()
    (folder / "key.pem").write_bytes(private.private_bytes(PEM, serialization.PrivateFormat.PKCS8, plain))
    public = private.public_key().public_bytes(PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    (folder / "key.pub").write_bytes(public)
    return folder / "key.pem", folder / "key.pub"


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return write_keys(tmp_path_factory.mktemp("keys"), ec.generate_private_key(ec.SECP256R1()))


@pytest.fixture
def signed(tmp_path: Path, keys: tuple[Path, Path]) -> Path:
    folder = write_small_bundle(tmp_path / "bundle")
    sign_bundle(folder, keys[0])
    return folder


@pytest.mark.parametrize("curve", [ec.SECP256R1(), ec.SECP384R1(), ec.SECP521R1()], ids=lambda curve: curve.name)
def test_a_signed_bundle_is_verified_with_its_key(tmp_path: Path, curve: ec.EllipticCurve) -> None:
    private, public = write_keys(tmp_path / "keys", ec.generate_private_key(curve))
    folder = write_small_bundle(tmp_path / "bundle")
    before = read_bundle(folder)
    assert before.signature == "unsigned"
    hint = sign_bundle(folder, private)
    assert hint in (folder / "bundle.sig").read_text()
    after = read_bundle(folder, public_key=public)
    assert after.signature == "verified"
    assert (after.digest, after.files) == (before.digest, before.files)  # the signature lies outside the digest
    assert read_bundle(folder).signature == "unchecked"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle", "keys"]  # nothing half-written


def test_check_says_what_the_signature_is_worth(signed: Path, keys: tuple[Path, Path]) -> None:
    def row(report: Any) -> str:
        return dict(check_tables(report, verbose=False)[0][2])["signature"]

    assert "NOT checked" in row(check_bundle(signed, replay=False))
    assert row(check_bundle(signed, replay=False, public_key=keys[1])).startswith("valid")
    (signed / "bundle.sig").unlink()
    assert row(check_bundle(signed, replay=False)).startswith("none")


def test_an_unsigned_bundle_is_refused_when_a_key_is_given(tmp_path: Path, keys: tuple[Path, Path]) -> None:
    folder = write_small_bundle(tmp_path / "bundle")
    with pytest.raises(BundleError, match="is not signed"):
        read_bundle(folder, public_key=keys[1])


def test_another_key_is_refused_and_named(signed: Path, tmp_path: Path) -> None:
    _, public = write_keys(tmp_path / "others", ec.generate_private_key(ec.SECP256R1()))
    with pytest.raises(BundleError, match=r"was made with the key '[0-9a-f]{12}', you gave '[0-9a-f]{12}'"):
        read_bundle(signed, public_key=public)


def test_a_signature_of_another_bundle_is_refused(signed: Path, tmp_path: Path, keys: tuple[Path, Path]) -> None:
    other = write_small_bundle(tmp_path / "other", golden_npz=b"another")
    sign_bundle(other, keys[0])
    shutil.copy(other / "bundle.sig", signed)
    with pytest.raises(BundleError, match=r"manifest\.json is not what was signed"):
        read_bundle(signed, public_key=keys[1])


@pytest.mark.parametrize("name", sorted(small_files()))
def test_recomputed_digests_do_not_help(signed: Path, keys: tuple[Path, Path], name: str) -> None:
    data = bytearray((signed / name).read_bytes())
    data[-1] ^= 1
    (signed / name).write_bytes(data)
    recompute(signed, small_manifest(small_files()))
    with pytest.raises(BundleError, match=r"manifest\.json is not what was signed"):
        read_bundle(signed, public_key=keys[1])


def change_payload(value: Any) -> None:
    payload = json.loads(base64.b64decode(value["dsseEnvelope"]["payload"]))
    payload["predicate"]["resources"][0]["digest"] = "0" * 64
    value["dsseEnvelope"]["payload"] = base64.b64encode(json.dumps(payload).encode()).decode()


EDITS: dict[str, Callable[[Any], Any]] = {
    "payload": change_payload,
    "media type": lambda v: v.update(mediaType="text/plain"),
    "payload type": lambda v: v["dsseEnvelope"].update(payloadType="text/plain"),
    "no signature": lambda v: v["dsseEnvelope"].update(signatures=[]),
    "two signatures": lambda v: v["dsseEnvelope"]["signatures"].append(v["dsseEnvelope"]["signatures"][0]),
    "empty signature": lambda v: v["dsseEnvelope"]["signatures"][0].update(sig=""),
    "no base64": lambda v: v["dsseEnvelope"]["signatures"][0].update(sig="!"),
    "a number": lambda v: v["dsseEnvelope"].update(payload=3),
    "no envelope": lambda v: v.pop("dsseEnvelope"),
    "no hint": lambda v: v["verificationMaterial"].pop("publicKey"),
}


@pytest.mark.parametrize("edit", EDITS)
def test_an_edited_signature_is_refused(signed: Path, keys: tuple[Path, Path], edit: str) -> None:
    value = json.loads((signed / "bundle.sig").read_text())
    EDITS[edit](value)
    (signed / "bundle.sig").write_text(json.dumps(value))
    with pytest.raises(BundleError, match=r"bundle\.sig (is no signature|is not valid under this public key)"):
        read_bundle(signed, public_key=keys[1])


@pytest.mark.parametrize("data", [b"", b"null", b"[]", b"{", b"\xff", b"[" * 100_000, b"{" * (1 << 20)], ids=range(7))
def test_a_signature_that_is_none_is_refused(signed: Path, keys: tuple[Path, Path], data: bytes) -> None:
    (signed / "bundle.sig").write_bytes(data)
    with pytest.raises(BundleError, match=r"bundle\.sig is no signature"):
        read_bundle(signed, public_key=keys[1])


DAMAGE: dict[str, Callable[[Path], Any]] = {
    "link": lambda path: (path.rename(path.parent.parent / "sig"), path.symlink_to(path.parent.parent / "sig")),
    "pipe": lambda path: (path.unlink(), os.mkfifo(path)),
    "directory": lambda path: (path.unlink(), path.mkdir()),
    "huge": lambda path: os.truncate(path, 1 << 40),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_signature_file_is_a_plain_small_file(signed: Path, keys: tuple[Path, Path], damage: str) -> None:
    DAMAGE[damage](signed / "bundle.sig")
    for public_key in (None, keys[1]):
        with pytest.raises(BundleError, match=r"bundle\.sig"):
            read_bundle(signed, public_key=public_key)


def resealed(folder: Path, private: Path, edit: Callable[[Any], Any]) -> None:
    """Sign an edited statement with the right key."""
    key = serialization.load_pem_private_key(private.read_bytes(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    value = json.loads((folder / "bundle.sig").read_text())
    statement = json.loads(base64.b64decode(value["dsseEnvelope"]["payload"]))
    edit(statement)
    payload = json.dumps(statement).encode()
    from cryptography.hazmat.primitives.hashes import SHA256

    seal = key.sign(pre_authentication(payload), ec.ECDSA(SHA256()))
    value["dsseEnvelope"] |= {"payload": base64.b64encode(payload).decode()}
    value["dsseEnvelope"]["signatures"][0]["sig"] = base64.b64encode(seal).decode()
    (folder / "bundle.sig").write_text(json.dumps(value))


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda s: None, None),
        (lambda s: s["predicate"]["resources"].pop(0), "is not what was signed"),
        (lambda s: s["predicate"]["resources"].append(s["predicate"]["resources"][0]), "a file is listed twice"),
        (lambda s: s["predicate"]["resources"][1].update(algorithm="blake3"), "not by its sha256"),
        (lambda s: s["predicate"]["resources"].append({"name": "x", "algorithm": "sha256", "digest": "0"}), "x is not what"),
        (lambda s: s.update(predicateType="https://slsa.dev/provenance/v1"), "signs something other than a bundle"),
        (lambda s: s["predicate"]["serialization"].update(method="shards"), "sha256 of whole files"),
    ],
    ids=["unchanged", "one less", "twice", "algorithm", "one more", "predicate", "shards"],
)
def test_a_valid_signature_of_something_else_is_refused(
    signed: Path, keys: tuple[Path, Path], edit: Callable[[Any], Any], message: str | None
) -> None:
    resealed(signed, keys[0], edit)
    if message is None:
        assert read_bundle(signed, public_key=keys[1]).signature == "verified"
        return
    with pytest.raises(BundleError, match=message):
        read_bundle(signed, public_key=keys[1])


def test_wrong_keys_are_usage_errors(signed: Path, keys: tuple[Path, Path], tmp_path: Path) -> None:
    ed_private, ed_public = write_keys(tmp_path / "ed", ed25519.Ed25519PrivateKey.generate())
    koblitz, _ = write_keys(tmp_path / "koblitz", ec.generate_private_key(ec.SECP256K1()))
    key = ec.generate_private_key(ec.SECP256R1())
    locked = tmp_path / "locked.pem"
    protection = serialization.BestAvailableEncryption(b"word")
    locked.write_bytes(key.private_bytes(PEM, serialization.PrivateFormat.PKCS8, protection))
    before = (signed / "bundle.sig").read_bytes()
    for path, message in [
        (ed_private, "expected an elliptic curve key"),
        (koblitz, "expected an elliptic curve key"),
        (keys[1], "no PEM private key"),
        (locked, "is encrypted"),
        (tmp_path / "nothing", "cannot be read"),
    ]:
        with pytest.raises(UsageError, match=message):
            sign_bundle(signed, path)
    for path, message in [(ed_public, "expected an elliptic curve key"), (keys[0], "no PEM public key"), (tmp_path, "cannot be")]:
        with pytest.raises(UsageError, match=message):
            read_bundle(signed, public_key=path)
    assert (signed / "bundle.sig").read_bytes() == before


def test_a_changed_bundle_is_not_signed(tmp_path: Path, keys: tuple[Path, Path]) -> None:
    folder = write_small_bundle(tmp_path / "bundle")
    (folder / "decoder.data").write_bytes(b"x")
    with pytest.raises(BundleError, match="was changed"):
        sign_bundle(folder, keys[0])
    assert not (folder / "bundle.sig").exists()


def test_without_the_package_nothing_passes_as_verified(
    signed: Path, keys: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "cryptography.exceptions", None)
    with pytest.raises(BundleError, match=r"pip install 'drivekd\[sign\]'"):
        read_bundle(signed, public_key=keys[1])
    assert read_bundle(signed).signature == "unchecked"
