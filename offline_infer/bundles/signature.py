"""A signature over a bundle with a key that never leaves its owner's machine, in the format of OpenSSF model signing.

The signature is a Sigstore bundle (``model.sig``): an in-toto statement that lists every file with its SHA-256, in a DSSE
envelope, signed with ECDSA. ``model_signing verify key`` checks it as well, and its signatures are checked here. No
network is used: whoever verifies has the public key from its owner.

Formats: https://github.com/sigstore/model-transparency (statement), https://github.com/secure-systems-lab/dsse (envelope).
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from offline_infer.bundles.bundle import PRECISION_CHECKS, Bundle
from offline_infer.bundles.manifest import SIGNATURE, files_of
from offline_infer.errors import BundleError, UsageError
from offline_infer.files import parse_json, read_json, sha256_file, write_text

_MEDIA_TYPE = "application/vnd.dev.sigstore.bundle.v0.3+json"
_PAYLOAD_TYPE = "application/vnd.in-toto+json"
_STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
_PREDICATE_TYPE = "https://model_signing/signature/v1.0"
_LARGEST = 1 << 24  # bytes of a signature file
_IGNORED = (PRECISION_CHECKS, SIGNATURE)
"""Grow or are made after signing: no part of what is signed."""


@dataclass(frozen=True)
class SignatureCheck:
    """What checking a signature gave.

    Attributes:
        key: SHA-256 of the public key that the signature names, in hexadecimal digits.
        checked: whether it was checked with a public key; otherwise it is only there.
        files: how many files it covers.
        faults: what is wrong; empty for a good signature.
    """

    key: str
    checked: bool
    files: int
    faults: tuple[str, ...] = ()


def sign_bundle(bundle: Bundle, private_key: Path, password: bytes | None = None) -> Path:
    """Sign every file of a bundle folder.

    Args:
        private_key: a PEM file with an elliptic-curve key (P-256, P-384 or P-521); ``openssl ecparam -name prime256v1 -genkey``
            makes one.
        password: of the key, where it has one.

    Returns:
        The signature's file, in the bundle.

    Raises:
        UsageError: ``cryptography`` is missing, the key cannot be used, or the bundle is a lone file.
        BundleError: the bundle's files do not agree with its records, or it holds a link.
    """
    if bundle.lone is not None:
        raise UsageError(f"{bundle.name} is a lone file; sign the bundle's folder")
    bundle.check_hashes()
    library = _library()
    key = library.private_key(private_key, password)
    payload = _statement(bundle.folder)
    record = {
        "mediaType": _MEDIA_TYPE,
        "verificationMaterial": {"publicKey": {"hint": library.fingerprint(key.public_key())}, "tlogEntries": []},
        "dsseEnvelope": {
            "payload": base64.b64encode(payload).decode(),
            "payloadType": _PAYLOAD_TYPE,
            "signatures": [{"sig": base64.b64encode(library.sign(key, _to_sign(payload))).decode(), "keyid": ""}],
        },
    }
    write_text(bundle.folder / SIGNATURE, json.dumps(record))
    return bundle.folder / SIGNATURE


def check_signature(folder: Path, public_key: Path | None) -> SignatureCheck | None:
    """Check a bundle's signature and every file it covers.

    Args:
        public_key: PEM file of the key it has to be signed with; None only tells whose signature is there.

    Returns:
        None where the bundle is not signed.

    Raises:
        BundleError: the signature file is damaged.
        UsageError: ``cryptography`` is missing, or the key cannot be used.
    """
    path = folder / SIGNATURE
    if not path.is_file():
        return None
    try:
        envelope = _Envelope.read(path)
    except (KeyError, TypeError, IndexError, ValueError, OSError, binascii.Error) as error:
        raise BundleError(f"{path} is not a signature of OpenSSF model signing ({type(error).__name__})") from error
    if public_key is None:
        return SignatureCheck(envelope.hint, False, len(envelope.files))
    library = _library()
    key = library.public_key(public_key)
    fingerprint = library.fingerprint(key)
    faults = []
    if envelope.hint and envelope.hint != fingerprint:
        faults.append(f"it was made with another key ({envelope.hint[:16]}...), not with {public_key.name}")
    elif not library.verifies(key, envelope.signature, _to_sign(envelope.payload)):
        faults.append("it does not agree with its own statement")
    else:
        faults += _differences(folder, envelope.files)
    return SignatureCheck(fingerprint, True, len(envelope.files), tuple(faults))


@dataclass(frozen=True)
class _Envelope:
    """A signature file taken apart; nothing in it is trusted yet."""

    hint: str
    payload: bytes
    signature: bytes
    files: dict[str, str]

    @classmethod
    def read(cls, path: Path) -> _Envelope:
        record = read_json(path, largest=_LARGEST)
        envelope = record["dsseEnvelope"]
        if envelope["payloadType"] != _PAYLOAD_TYPE:
            raise ValueError("payload type")
        payload = base64.b64decode(envelope["payload"], validate=True)
        statement = parse_json(payload.decode("utf-8"))
        if statement["predicateType"] != _PREDICATE_TYPE:
            raise ValueError("predicate type")
        files: dict[str, str] = {}
        for resource in statement["predicate"]["resources"]:
            if resource["algorithm"] != "sha256" or str(resource["name"]) in files:
                raise ValueError("resource")
            files[str(resource["name"])] = str(resource["digest"])
        (signed,) = envelope["signatures"]
        hint = str(record["verificationMaterial"]["publicKey"].get("hint", ""))
        return cls(hint, payload, base64.b64decode(signed["sig"], validate=True), files)


def _statement(folder: Path) -> bytes:
    """The in-toto statement over the files of a folder."""
    resources = []
    whole = hashlib.sha256()
    for name in files_of(folder):
        if name in _IGNORED:
            continue
        path = folder / name
        if path.is_symlink():
            raise BundleError(f"{path} is a link; copy the bundle with links resolved (cp -rL) and sign the copy")
        digest = sha256_file(path)
        whole.update(bytes.fromhex(digest))
        resources.append({"name": name, "algorithm": "sha256", "digest": digest})
    statement = {
        "_type": _STATEMENT_TYPE,
        "subject": [{"name": folder.resolve().name, "digest": {"sha256": whole.hexdigest()}}],
        "predicateType": _PREDICATE_TYPE,
        "predicate": {
            "serialization": {
                "method": "files",
                "hash_type": "sha256",
                "allow_symlinks": False,
                "ignore_paths": list(_IGNORED),
            },
            "resources": resources,
        },
    }
    return json.dumps(statement, separators=(",", ":")).encode()


def _differences(folder: Path, files: dict[str, str]) -> list[str]:
    """How a folder differs from the files a statement lists."""
    present = [name for name in files_of(folder) if name not in _IGNORED]
    faults = [f"{name} was added after signing" for name in present if name not in files]
    for name, digest in files.items():
        if name not in present or (folder / name).is_symlink():
            faults.append(f"{name} is missing")
        elif sha256_file(folder / name) != digest:
            faults.append(f"{name} was changed after signing")
    return faults


def _to_sign(payload: bytes) -> bytes:
    """DSSE's pre-authentication encoding."""
    kind = _PAYLOAD_TYPE.encode()
    return b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)


def _library() -> _Keys:
    try:
        return _Keys()
    except ImportError as error:
        raise UsageError(
            f"signatures need the cryptography package, which cannot be imported ({error}); "
            "pip install 'offline-infer[sign]'"
        ) from error


class _Keys:
    """Elliptic-curve keys and signatures through ``cryptography``."""

    def __init__(self) -> None:
        from cryptography.exceptions import InvalidSignature
        from cryptography.hazmat.primitives import hashes, serialization
        from cryptography.hazmat.primitives.asymmetric import ec

        self._invalid = InvalidSignature
        self._serialization = serialization
        self._ec = ec
        self._hashes: dict[str, Any] = {
            "secp256r1": hashes.SHA256,
            "secp384r1": hashes.SHA384,
            "secp521r1": hashes.SHA512,
        }

    def private_key(self, path: Path, password: bytes | None) -> Any:
        try:
            key = self._serialization.load_pem_private_key(path.read_bytes(), password)
        except (OSError, ValueError, TypeError) as error:
            raise UsageError(f"{path} cannot be used as a private key: {error}") from error
        return self._checked(key, self._ec.EllipticCurvePrivateKey, path)

    def public_key(self, path: Path) -> Any:
        try:
            key = self._serialization.load_pem_public_key(path.read_bytes())
        except (OSError, ValueError, TypeError) as error:
            raise UsageError(f"{path} cannot be used as a public key: {error}") from error
        return self._checked(key, self._ec.EllipticCurvePublicKey, path)

    def fingerprint(self, public_key: Any) -> str:
        """SHA-256 of the key's PEM form, as model signing names a key."""
        encoded: bytes = public_key.public_bytes(
            self._serialization.Encoding.PEM, self._serialization.PublicFormat.SubjectPublicKeyInfo
        )
        return hashlib.sha256(encoded).hexdigest()

    def sign(self, key: Any, data: bytes) -> bytes:
        signature: bytes = key.sign(data, self._ec.ECDSA(self._hashes[key.curve.name]()))
        return signature

    def verifies(self, key: Any, signature: bytes, data: bytes) -> bool:
        try:
            key.verify(signature, data, self._ec.ECDSA(self._hashes[key.curve.name]()))
        except self._invalid:
            return False
        return True

    def _checked(self, key: Any, kind: type, path: Path) -> Any:
        if not isinstance(key, kind) or key.curve.name not in self._hashes:  # type: ignore[attr-defined]
            raise UsageError(f"{path} is not an elliptic-curve key of P-256, P-384 or P-521")
        return key
