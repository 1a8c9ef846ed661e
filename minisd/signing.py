"""Signatures: who vouches for a record. Ed25519 (RFC 8032) over the record's canonical JSON.

What is signed is DSSE's pre-authentication encoding (github.com/secure-systems-lab/dsse, protocol.md) of the
record without its signature, so that no signature for anything else can be passed off as one of a picture.
Keys are PEM files, as `openssl genpkey -algorithm ed25519` and `openssl pkey -pubout` write them. Needs the
package `cryptography` (the extra `signing`).
"""

from __future__ import annotations

import base64
import importlib.util
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING

from minisd.errors import MinisdError, PlanError, quoted
from minisd.receipt import canonical

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

TYPE = b"application/vnd.minisd.record+json"
MAX_KEY = 65_536  # bytes of a key's file


class SignatureError(MinisdError):
    """A key cannot be used, or a signature does not hold."""


def needed() -> None:
    """Raises PlanError where `cryptography` is not installed."""
    if importlib.util.find_spec("cryptography") is None:
        raise PlanError("signatures need the package cryptography; install minisd[signing]")


class SigningKey:
    """A private key, and the raw public key that belongs to it."""

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self._key = key
        self.public = key.public_key().public_bytes_raw()

    @classmethod
    def of(cls, path: str | os.PathLike[str], password: bytes | None = None) -> SigningKey:
        """From a PEM file (PKCS 8). Raises SignatureError."""
        needed()
        from cryptography.exceptions import UnsupportedAlgorithm
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
        from cryptography.hazmat.primitives.serialization import load_pem_private_key

        try:
            key = load_pem_private_key(key_bytes(path), password)
        except (ValueError, TypeError, UnsupportedAlgorithm) as error:
            raise SignatureError(f"{quoted(path)} holds no private key that can be read") from error
        if not isinstance(key, Ed25519PrivateKey):
            raise SignatureError(f"{quoted(path)} holds another kind of key; records are signed with Ed25519")
        return cls(key)

    def signed(self, record: Mapping[str, object]) -> dict[str, object]:
        """The record with this key's signature."""
        plain = {k: v for k, v in record.items() if k != "signature"}
        value = self._key.sign(message(plain))
        texts = {"key": self.public, "value": value}
        coded = {name: base64.b64encode(data).decode() for name, data in texts.items()}
        return plain | {"signature": coded | {"alg": "Ed25519"}}


def public_key(path: str | os.PathLike[str]) -> bytes:
    """The raw public key in a PEM file. Raises SignatureError."""
    needed()
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    try:
        key = load_pem_public_key(key_bytes(path))
    except (ValueError, UnsupportedAlgorithm) as error:
        raise SignatureError(f"{quoted(path)} holds no public key that can be read") from error
    if not isinstance(key, Ed25519PublicKey):
        raise SignatureError(f"{quoted(path)} holds another kind of key; records are signed with Ed25519")
    return key.public_bytes_raw()


def signer_of(record: Mapping[str, object]) -> bytes | None:
    """The raw public key that signed a record; None where it is not signed. Raises SignatureError if the
    signature is not that key's, or not over this record; PlanError."""
    given = record.get("signature")
    if given is None:
        return None
    needed()
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    try:
        if not isinstance(given, Mapping) or given.get("alg") != "Ed25519":
            raise ValueError("its form is not known")
        key, value = (base64.b64decode(str(given.get(n)), validate=True) for n in ("key", "value"))
        plain = {k: v for k, v in record.items() if k != "signature"}
        Ed25519PublicKey.from_public_bytes(key).verify(value, message(plain))
        return key
    except ValueError as error:
        raise SignatureError(f"the signature of the record is damaged: {error}") from error
    except InvalidSignature as error:
        raise SignatureError("the signature is not over this record: it was changed after signing") from error


def message(record: Mapping[str, object]) -> bytes:
    """DSSE's PAE of the record."""
    body = canonical(record).encode("utf-8", "surrogatepass")
    return b" ".join([b"DSSEv1", str(len(TYPE)).encode(), TYPE, str(len(body)).encode(), body])


def key_bytes(path: str | os.PathLike[str]) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read(MAX_KEY)
    except OSError as error:
        raise SignatureError(f"cannot read the key {quoted(path)}: {error.strerror or error}") from error
