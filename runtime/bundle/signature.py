"""The signature of a bundle: `bundle.sig`, outside the digest, checked with a public key before any other file is read.

The format is OpenSSF model-signing's with a key (its predicate v1.0): a Sigstore bundle whose DSSE envelope holds an in-toto
statement that lists the sha256 of every file, signed with ECDSA over P-256, P-384 or P-521. So its tool verifies our signatures:

    model_signing verify key BUNDLE --signature BUNDLE/bundle.sig --public_key key.pub

Its library does not ride in the car: it opens the files by path a second time, where this runtime hands the verified bytes on,
and it brings some 25 packages (sigstore, tuf, requests; 95 MB). The check itself is `cryptography`, the extra `sign`.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from drivekd.errors import BundleError, UsageError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import ECDSA, EllipticCurvePublicKey

SIGNATURE_FILE = "bundle.sig"
MAX_SIGNATURE_BYTES = 1 << 20  # some 3 kB for a bundle of ten files
MEDIA_TYPE = "application/vnd.dev.sigstore.bundle.v0.3+json"
PAYLOAD_TYPE = "application/vnd.in-toto+json"
STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE = "https://model_signing/signature/v1.0"
CURVES = ("secp256r1", "secp384r1", "secp521r1")

SignatureState = Literal["unsigned", "unchecked", "verified"]  # unchecked: signed, but no key was given


def verified_digests(signature: bytes, public_key: Path, where: str) -> dict[str, str]:
    """sha256 (hex) by file name, as the holder of the key signed them.

    signature: the bytes of bundle.sig. public_key: a PEM file with an elliptic curve key.
    Raises BundleError when the signature is not one, or of another key; UsageError when the key is none.
    """
    key = load_public_key(public_key)
    try:
        envelope, hint = _envelope(json.loads(signature))
        payload = base64.b64decode(envelope["payload"], validate=True)
        sealed = base64.b64decode(envelope["signatures"][0]["sig"], validate=True)
    except (ValueError, KeyError, TypeError, IndexError, RecursionError, binascii.Error) as error:
        raise BundleError(f"{where}: {SIGNATURE_FILE} is no signature that drivekd reads ({error}); sign again") from error
    _check_seal(key, sealed, payload, f"{where}: {SIGNATURE_FILE}", hint)
    try:
        return _resources(json.loads(payload))
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise BundleError(f"{where}: {SIGNATURE_FILE} signs something other than a bundle ({error}); sign again") from error


def check_signed(signed: Mapping[str, str], found: Mapping[str, str], where: str) -> None:
    """Compare signed with found digests, by file name. Raises BundleError naming the first file that differs."""
    for name in sorted({*signed, *found}):
        if signed.get(name) != found.get(name):
            raise BundleError(
                f"{where}: {name} is not what was signed: {SIGNATURE_FILE} says {signed.get(name, 'no such file')}, "
                f"the bundle has {found.get(name, 'no such file')}. Someone changed the bundle, or the signature is another's."
            )


def statement(digests: Mapping[str, str], ignored: tuple[str, ...]) -> bytes:
    """The payload to sign: an in-toto statement about files' sha256 (hex)."""
    names = sorted(digests)
    whole = hashlib.sha256(b"".join(bytes.fromhex(digests[name]) for name in names)).hexdigest()
    predicate = {
        "serialization": {"method": "files", "hash_type": "sha256", "allow_symlinks": False, "ignore_paths": list(ignored)},
        "resources": [{"name": name, "algorithm": "sha256", "digest": digests[name]} for name in names],
    }
    subject = [{"name": "drivekd bundle", "digest": {"sha256": whole}}]
    value = {"_type": STATEMENT_TYPE, "subject": subject, "predicateType": PREDICATE_TYPE, "predicate": predicate}
    return json.dumps(value, indent=1).encode()


def pre_authentication(payload: bytes) -> bytes:
    """What is signed: DSSE's encoding of payload type and payload (DSSE v1.0, protocol.md)."""
    return b"DSSEv1 %d %s %d %s" % (len(PAYLOAD_TYPE), PAYLOAD_TYPE.encode(), len(payload), payload)


def load_public_key(path: Path) -> EllipticCurvePublicKey:
    """Read a PEM public key. Raises UsageError: no file, no such key; BundleError: the package is missing."""
    try:
        from cryptography.exceptions import UnsupportedAlgorithm
        from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
        from cryptography.hazmat.primitives.serialization import load_pem_public_key
    except ImportError as error:
        raise BundleError("signatures need the package cryptography: pip install 'drivekd[sign]'") from error
    try:
        key = load_pem_public_key(Path(path).read_bytes())
    except OSError as error:
        raise UsageError(f"{path}: the public key cannot be read ({error.strerror})") from error
    except (ValueError, UnsupportedAlgorithm) as error:
        raise UsageError(f"{path}: no PEM public key; make one: openssl ec -in KEY.pem -pubout -out key.pub") from error
    if not isinstance(key, EllipticCurvePublicKey) or key.curve.name not in CURVES:
        raise UsageError(f"{path}: expected an elliptic curve key ({', '.join(CURVES)}), found {type(key).__name__}")
    return key


def signing_hash(key: EllipticCurvePublicKey) -> ECDSA:
    """ECDSA with the hash that belongs to the key's curve, as Sigstore pairs them."""
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric.ec import ECDSA

    algorithms = {256: hashes.SHA256(), 384: hashes.SHA384(), 521: hashes.SHA512()}
    return ECDSA(algorithms[key.curve.key_size])


def key_hint(key: EllipticCurvePublicKey) -> str:
    """sha256 (hex) of the public key's PEM text: names a key without being one."""
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    return hashlib.sha256(key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)).hexdigest()


def _envelope(value: Any) -> tuple[dict[str, Any], str]:
    if value["mediaType"] != MEDIA_TYPE:
        raise ValueError(f"media type {value['mediaType']!r:.80}, expected {MEDIA_TYPE}")
    envelope = value["dsseEnvelope"]
    if envelope["payloadType"] != PAYLOAD_TYPE or len(envelope["signatures"]) != 1:
        raise ValueError(f"expected one signature over {PAYLOAD_TYPE}")
    return envelope, str(value["verificationMaterial"]["publicKey"]["hint"])


def _check_seal(key: EllipticCurvePublicKey, sealed: bytes, payload: bytes, where: str, hint: str) -> None:
    from cryptography.exceptions import InvalidSignature

    try:
        key.verify(sealed, pre_authentication(payload), signing_hash(key))
    except InvalidSignature as error:
        mine = key_hint(key)
        reason = "its content was changed" if mine == hint else f"it was made with the key {hint[:12]!r}, you gave {mine[:12]!r}"
        raise BundleError(f"{where} is not valid under this public key: {reason}. Do not use this bundle.") from error


def _resources(value: Any) -> dict[str, str]:
    if (value["_type"], value["predicateType"]) != (STATEMENT_TYPE, PREDICATE_TYPE):
        raise ValueError(f"statement {value['_type']!r:.80}, predicate {value['predicateType']!r:.80}")
    predicate = value["predicate"]
    if (predicate["serialization"]["method"], predicate["serialization"]["hash_type"]) != ("files", "sha256"):
        raise ValueError("expected the sha256 of whole files")
    entries = {str(entry["name"]): str(entry["digest"]) for entry in predicate["resources"] if entry["algorithm"] == "sha256"}
    if len(entries) != len(predicate["resources"]):
        raise ValueError("a file is listed twice, or not by its sha256")
    return entries
