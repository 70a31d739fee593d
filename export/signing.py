"""Signing a bundle with a private key. The format and its check: runtime/bundle/signature.py. Imports no torch."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from drivekd.errors import ExportError, UsageError
from drivekd.files import write_whole
from drivekd.runtime.bundle.manifest import ENGINES_DIR
from drivekd.runtime.bundle.reader import Bundle, read_bundle, signed_digests
from drivekd.runtime.bundle.signature import (
    CURVES,
    MEDIA_TYPE,
    PAYLOAD_TYPE,
    SIGNATURE_FILE,
    key_hint,
    pre_authentication,
    signing_hash,
    statement,
)

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey

# what lies in a bundle's folder and is not signed: model-signing's tool skips these too
UNSIGNED = (SIGNATURE_FILE, ENGINES_DIR)


def sign_bundle(path: Path, key: Path) -> str:
    """Verify a bundle and write its bundle.sig, in place of an older one. Returns the key's hint (hex), which the file states.

    key: a PEM file with an unencrypted elliptic curve private key (P-256, P-384, P-521):
    `openssl ecparam -name prime256v1 -genkey -noout -out KEY.pem`.
    Raises BundleError (not whole), UsageError (no such key), ExportError (cryptography is missing).
    """
    private = load_private_key(key)
    bundle = read_bundle(Path(path))
    text = json.dumps(_signature(bundle, private)) + "\n"
    folder = Path(path).resolve()
    write_whole(folder / SIGNATURE_FILE, text, beside=folder, mode=0o644)  # a leftover inside would be a file too many
    return key_hint(private.public_key())


def load_private_key(path: Path) -> EllipticCurvePrivateKey:
    """Read a PEM private key. Raises UsageError: no file, encrypted, another kind of key; ExportError: no cryptography."""
    try:
        from cryptography.exceptions import UnsupportedAlgorithm
        from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
        from cryptography.hazmat.primitives.serialization import load_pem_private_key
    except ImportError as error:
        raise ExportError("signing needs the package cryptography: pip install 'drivekd[sign]'") from error
    try:
        key = load_pem_private_key(Path(path).read_bytes(), password=None)
    except OSError as error:
        raise UsageError(f"{path}: the private key cannot be read ({error.strerror})") from error
    except TypeError as error:  # what cryptography raises for a missing password
        raise UsageError(f"{path} is encrypted; sign with a decrypted key: openssl ec -in {path} -out KEY.pem") from error
    except (ValueError, UnsupportedAlgorithm) as error:
        raise UsageError(
            f"{path}: no PEM private key; make one: openssl ecparam -name prime256v1 -genkey -noout -out KEY.pem"
        ) from error
    if not isinstance(key, EllipticCurvePrivateKey) or key.curve.name not in CURVES:
        raise UsageError(f"{path}: expected an elliptic curve key ({', '.join(CURVES)}), found {type(key).__name__}")
    return key


def _signature(bundle: Bundle, key: EllipticCurvePrivateKey) -> dict[str, Any]:
    payload = statement(signed_digests(bundle.manifest, bundle.digest), UNSIGNED)
    sealed = key.sign(pre_authentication(payload), signing_hash(key.public_key()))
    return {
        "mediaType": MEDIA_TYPE,
        "verificationMaterial": {"publicKey": {"hint": key_hint(key.public_key())}, "tlogEntries": []},
        "dsseEnvelope": {
            "payload": base64.b64encode(payload).decode(),
            "payloadType": PAYLOAD_TYPE,
            "signatures": [{"sig": base64.b64encode(sealed).decode(), "keyid": ""}],
        },
    }
