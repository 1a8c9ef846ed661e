"""Whether a checkpoint is the one that was meant, before any tensor of it is used: by its sha256, or by a
signature over its files.

    load("model.safetensors", sha256="6ce0161689b3853acaa03779ec93eafe75a02f4ced659bee03f50797806fa2fa")
    load("folder", signature="folder.sig", public_key="author.pem")

A signature is a bundle as OpenSSF's model-signing writes it with an elliptic-curve key: an in-toto statement
that lists sha256 digests, in a signed envelope (DSSE). Left out on purpose: signatures by an identity
(sigstore), which need the network, and by certificates.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from minisd.errors import CheckpointError, PlanError, RequestError, listed, quoted
from minisd.weights_loader.binary_file import CHUNK, BinaryFile

MAX_BUNDLE = 16_000_000  # bytes; a signature over a thousand files has 200 kB
MEDIA_TYPE = "application/vnd.dev.sigstore.bundle"
PAYLOAD_TYPE = "application/vnd.in-toto+json"
STATEMENT = "https://in-toto.io/Statement/v1"
PREDICATE = "https://model_signing/signature/v1.0"
NOT_SIGNED = (".git", ".github", ".gitignore", ".gitattributes")  # what model-signing never lists
HASHES = {256: "SHA256", 384: "SHA384", 521: "SHA512"}  # bits of the curve: what its signatures hash with


@dataclass(frozen=True)
class Proof:
    """What a checkpoint must be. sha256: 64 hexadecimal digits, of one file. signature: path of a bundle,
    public_key: of the key in PEM; both or neither."""

    sha256: str | None = None
    signature: str | os.PathLike[str] | None = None
    public_key: str | os.PathLike[str] | None = None

    def __post_init__(self) -> None:
        if self.sha256 is not None and not re.fullmatch("[0-9a-fA-F]{64}", self.sha256):
            raise RequestError(
                f"sha256 must be 64 hexadecimal digits, got {quoted(self.sha256)}", field="sha256"
            )
        if (self.signature is None) != (self.public_key is None):
            raise RequestError(
                "signature and public_key go together: the bundle, and the key that it must be by",
                field="public_key" if self.public_key is None else "signature",
            )


NO_PROOF = Proof()


@contextmanager
def proven(path: str | os.PathLike[str], proof: Proof) -> Iterator[None]:
    """Checks a file or folder against a proof; opened inside the context, it is the one that was checked.

    Raises CheckpointError where it differs, or was exchanged while it was opened."""
    if proof.sha256 is None and proof.signature is None:
        yield
        return
    before = identities(path)
    if proof.sha256 is not None:
        check_pin(path, proof.sha256)
    if proof.signature is not None and proof.public_key is not None:
        check_signature(path, proof.signature, proof.public_key)
    yield
    if identities(path) != before:
        raise CheckpointError(f"{quoted(Path(path).name)} changed while it was checked; load it again")


def identities(path: str | os.PathLike[str]) -> dict[str, tuple[int, ...]]:
    """Of each file: device, inode, size and both times."""
    try:
        found = {name: os.stat(file) for name, file in files_of(path).items()}
    except OSError as error:
        raise CheckpointError(f"cannot read {quoted(path)}: {error.strerror or error}") from error
    return {n: (s.st_dev, s.st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns) for n, s in found.items()}


def files_of(path: str | os.PathLike[str]) -> dict[str, Path]:
    """{name inside: file} of a folder; a file is "." """
    root = Path(path)
    if not root.is_dir():
        return {".": root}
    below = (p for p in sorted(root.rglob("*")) if p.is_file())
    named = {p.relative_to(root).as_posix(): p for p in below}
    return {n: p for n, p in named.items() if n.split("/")[0] not in NOT_SIGNED}


def sha256_of(path: Path) -> str:
    """Of the bytes that are there now: no digest that was kept is believed here."""
    file = BinaryFile(path)
    try:
        digest, buffer = hashlib.sha256(), memoryview(bytearray(min(CHUNK, file.size)))
        for at in range(0, file.size, CHUNK):
            part = buffer[: min(CHUNK, file.size - at)]
            file.read_into(at, part)
            digest.update(part)
        return digest.hexdigest()
    finally:
        file.close()


def check_pin(path: str | os.PathLike[str], expected: str) -> None:
    if os.path.isdir(path):
        raise CheckpointError(
            f"{quoted(Path(path).name)} is a folder; a sha256 pins one file, a signature covers a folder"
        )
    found = sha256_of(Path(path))
    if found != expected.lower():
        raise CheckpointError(
            f"{quoted(Path(path).name)}: sha256 is {found}, expected {expected.lower()}; "
            "this is another file, and nothing of it was used"
        )


def check_signature(
    path: str | os.PathLike[str], signature: str | os.PathLike[str], public_key: str | os.PathLike[str]
) -> None:
    """Every file is listed in the bundle with the digest it has, and every file that is listed is there."""
    listed_digests, ignored = signed_digests(small(signature), small(public_key), Path(signature).name)
    name = quoted(Path(path).name)
    there = files_of(path)
    if not os.path.isdir(path):
        own = listed_digests.get(".") or listed_digests.get(Path(path).name)
        listed_digests = {".": own} if own is not None else {}
    else:  # the bundle may lie in the folder it signs
        apart = os.path.realpath(signature)
        there = {
            n: p for n, p in there.items() if os.path.realpath(p) != apart and n.split("/")[0] not in ignored
        }
    missing = [n for n in listed_digests if n not in there]
    if missing:
        raise CheckpointError(f"{name}: signed files are not there: {listed(missing)}")
    unsigned = [n for n in there if n not in listed_digests]
    if unsigned:
        shown = listed([Path(path).name if n == "." else n for n in unsigned])
        raise CheckpointError(f"{name}: the signature does not cover {shown}; refusing")
    for inside, file in there.items():
        found = sha256_of(file)
        if found != listed_digests[inside]:
            raise CheckpointError(
                f"{quoted(file.name)}: sha256 is {found}, signed was {listed_digests[inside]}; "
                "the file was changed after it was signed"
            )


def small(path: str | os.PathLike[str]) -> bytes:
    file = BinaryFile(path)
    try:
        if file.size > MAX_BUNDLE:
            raise CheckpointError(f"{file.name} is {file.size:,} bytes; no signature or key is so large")
        return file.read(0, file.size)
    finally:
        file.close()


def signed_digests(bundle: bytes, public_key: bytes, name: str) -> tuple[dict[str, str], tuple[str, ...]]:
    """({name: sha256}, names left out) of a bundle, once its signature holds. Raises CheckpointError."""
    shown = quoted(name)
    try:
        outer = json.loads(bundle)
        envelope = outer["dsseEnvelope"]
        (signed,) = envelope["signatures"]
        payload = base64.b64decode(envelope["payload"], validate=True)
        raw = base64.b64decode(signed["sig"], validate=True)
        kinds = outer["mediaType"].startswith(MEDIA_TYPE), envelope["payloadType"] == PAYLOAD_TYPE
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        kinds = (False, False)
        payload = raw = b""
    if not all(kinds):
        raise CheckpointError(f"{shown} is no bundle of model-signing with one signature by a key")
    verify(payload, raw, public_key, shown)
    try:
        statement = json.loads(payload)
        (subject,) = statement["subject"]
        predicate = statement["predicate"]
        method = predicate["serialization"]
        how = (statement["_type"], statement["predicateType"], method["method"], method["hash_type"])
        digests = {r["name"]: r["digest"] for r in predicate["resources"] if r["algorithm"] == "sha256"}
        root = hashlib.sha256(
            b"".join(bytes.fromhex(r["digest"]) for r in predicate["resources"])
        ).hexdigest()
        sound = how == (STATEMENT, PREDICATE, "files", "sha256") and subject["digest"]["sha256"] == root
        sound = sound and len(digests) == len(predicate["resources"]) > 0
        ignored = tuple(str(n) for n in method.get("ignore_paths", ()))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        sound, digests, ignored = False, dict[str, str](), ()
    if not sound:
        raise CheckpointError(
            f"{shown} is signed, but does not list files by their sha256; sign the model anew"
        )
    return digests, ignored


def verify(payload: bytes, signature: bytes, public_key: bytes, shown: str) -> None:
    """Whether the signature over an envelope's payload is by this key. Raises CheckpointError; PlanError
    where the package `cryptography` is missing."""
    try:
        from cryptography.exceptions import InvalidSignature
        from cryptography.hazmat.primitives import hashes, serialization
        from cryptography.hazmat.primitives.asymmetric import ec
    except ImportError:
        raise PlanError(
            "signatures are checked with the package cryptography; install minisd[signing], or pin sha256"
        ) from None
    try:
        key = serialization.load_pem_public_key(public_key)
    except ValueError as error:
        raise CheckpointError(f"the public key is not PEM that can be read: {quoted(error)}") from None
    if not isinstance(key, ec.EllipticCurvePublicKey) or key.curve.key_size not in HASHES:
        raise CheckpointError("the public key is not of an elliptic curve with 256, 384 or 521 bits")
    kind = PAYLOAD_TYPE.encode()
    message = b"DSSEv1 %d %s %d %s" % (len(kind), kind, len(payload), payload)
    try:
        key.verify(signature, message, ec.ECDSA(getattr(hashes, HASHES[key.curve.key_size])()))
    except InvalidSignature:
        raise CheckpointError(
            f"{shown}: the signature does not hold; it is by another key, or what it signs was changed"
        ) from None
