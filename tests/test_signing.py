"""Oracle: the package cryptography, keys that OpenSSL wrote; records that were changed, keys of others."""

from __future__ import annotations

import base64
import importlib.util
import json
import shutil
import subprocess
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from minisd.cli import main
from minisd.engine import Engine, load
from minisd.errors import PlanError
from minisd.receipt import canonical, sealed, seals
from minisd.request import Request
from minisd.signing import TYPE, SignatureError, SigningKey, message, public_key, signer_of
from minisd.verify import integrity, key_name, record_of, verify
from tests.test_receipt import rewritten
from tests.tiny import TINY, write_checkpoint

RECORD: dict[str, object] = {"minisd": "1", "request": {"seed": 1, "prompt": "café \ud800"}}


def keys(folder: Path, name: str = "a") -> tuple[Path, Path]:
    """(private, public) as PEM files."""
    key = ed25519.Ed25519PrivateKey.generate()
    private, public = folder / f"{name}.pem", folder / f"{name}.pub"
    private.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    public.write_bytes(
        key.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
    )
    return private, public


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    return load(write_checkpoint(tmp_path_factory.mktemp("model") / "tiny.safetensors", TINY["sd1"]))


def test_what_is_signed(tmp_path: Path) -> None:
    """Oracle: cryptography's own check of the signature, over DSSE's encoding written out by hand."""
    private, public = keys(tmp_path)
    record = SigningKey.of(private).signed(RECORD)
    body = canonical(RECORD).encode("utf-8", "surrogatepass")
    whole = b"DSSEv1 34 application/vnd.minisd.record+json %d " % len(body) + body
    assert message(RECORD) == whole and len(TYPE) == 34
    signature = record["signature"]
    assert isinstance(signature, dict) and signature["alg"] == "Ed25519"
    raw = public_key(public)
    ed25519.Ed25519PublicKey.from_public_bytes(raw).verify(base64.b64decode(signature["value"]), whole)
    assert signer_of(record) == raw and signer_of(RECORD) is None
    assert SigningKey.of(private).signed(record) == record  # Ed25519 draws nothing at random


@pytest.mark.skipif(shutil.which("openssl") is None, reason="no OpenSSL to write keys")
def test_keys_of_openssl(tmp_path: Path) -> None:
    """Oracle: a pair that OpenSSL made, with a password and without."""
    private, public = tmp_path / "k.pem", tmp_path / "k.pub"
    subprocess.run(["openssl", "genpkey", "-algorithm", "ed25519", "-out", private], check=True)
    subprocess.run(["openssl", "pkey", "-in", private, "-pubout", "-out", public], check=True)
    assert SigningKey.of(private).public == public_key(public)
    closed = tmp_path / "closed.pem"
    subprocess.run(
        ["openssl", "pkey", "-in", private, "-aes256", "-passout", "pass:x", "-out", closed], check=True
    )
    assert SigningKey.of(closed, b"x").public == public_key(public)
    for password in (None, b"y"):
        with pytest.raises(SignatureError, match="no private key that can be read"):
            SigningKey.of(closed, password)


def test_keys_that_cannot_be_used(tmp_path: Path) -> None:
    """Oracle: SignatureError saying what the file is."""
    private, public = keys(tmp_path)
    other = tmp_path / "ec.pem"
    key = ec.generate_private_key(ec.SECP256R1())
    other.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    other_public = tmp_path / "ec.pub"
    other_public.write_bytes(
        key.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
    )
    (tmp_path / "text").write_text("no key")
    for read, path, words in (
        (SigningKey.of, public, "holds no private key"),
        (SigningKey.of, other, "another kind of key"),
        (SigningKey.of, tmp_path / "text", "holds no private key"),
        (SigningKey.of, tmp_path / "none", "cannot read the key"),
        (public_key, private, "holds no public key"),
        (public_key, other_public, "another kind of key"),
        (public_key, tmp_path, "cannot read the key"),
    ):
        with pytest.raises(SignatureError, match=words):
            read(path)


def test_a_signed_picture(engine: Engine, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Oracle: proven, and by whom; inverse: a record changed and sealed again, another key, no signature."""
    private, public = keys(tmp_path)
    _, stranger = keys(tmp_path, "b")
    made = engine.run(Request(prompt="a cat", seed=5, steps=2))
    signed = made.save(tmp_path / "s.png", key=SigningKey.of(private))[0]
    plain = made.save(tmp_path / "p.png")[0]
    mine, other = public_key(public), public_key(stranger)
    finding = verify(signed, engine, key=mine)
    assert finding.code == 0 and finding.signed == f"signed by the key that was given: {key_name(mine)}"
    assert "a key of which nothing is known" in verify(signed, engine).signed
    finding = verify(signed, engine, key=other)
    assert finding.code == 1 and finding.first == "signature" and key_name(other) in finding.what
    finding = verify(plain, engine, key=mine)
    assert finding.code == 1 and "not signed" in finding.what

    def resealed(record: dict) -> None:
        record["request"]["prompt"] = "a dog"
        record["seals"] = seals(record)

    def moved(record: dict) -> None:
        record["signature"]["key"] = base64.b64encode(other).decode()

    def broken(record: dict) -> None:
        record["signature"]["value"] = "?"

    for change, words in (
        (resealed, "changed after signing"),
        (moved, "not over this record"),
        (broken, "is damaged"),
        (lambda r: r.update(signature=5), "form is not known"),
        (lambda r: r["signature"].update(alg="none"), "form is not known"),
    ):
        out = rewritten(signed, tmp_path / "t.png", change)
        finding = integrity(out, record_of(out))
        assert finding is not None and finding.code == 1 and words in finding.what
    out = rewritten(signed, tmp_path / "t.png", lambda r: r.pop("signature"))
    assert integrity(out, record_of(out)) is None  # whole, but no longer signed: that is what a key is for
    assert integrity(out, record_of(out), mine) is not None
    assert main(["verify", str(signed), "--quick", "--key", str(public), "--json"]) == 2
    assert json.loads(capsys.readouterr().out)["signed"].startswith("signed by the key that was given")
    assert main(["verify", str(signed), "--quick", "--key", str(stranger)]) == 1


def test_without_the_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, engine: Engine) -> None:
    """Oracle: PlanError naming the extra; a signed picture cannot be checked, one that is not can."""
    private, _ = keys(tmp_path)
    made = engine.run(Request(prompt="a cat", seed=5, steps=1))
    signed = made.save(tmp_path / "s.png", key=SigningKey.of(private))[0]
    plain = made.save(tmp_path / "p.png")[0]
    find = importlib.util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name, *a: None if name == "cryptography" else find(name, *a)
    )
    with pytest.raises(PlanError, match=r"minisd\[signing\]"):
        SigningKey.of(private)
    finding = integrity(signed, record_of(signed))
    assert finding is not None and finding.code == 2 and "minisd[signing]" in finding.what
    assert integrity(plain, record_of(plain)) is None


def test_the_flag(tmp_path: Path) -> None:
    """Oracle: the record of the picture that the command wrote."""
    private, public = keys(tmp_path)
    out = tmp_path / "a.png"
    flags = ["--steps", "1", "--seed", "1", "--sign", str(private), "-q"]
    assert main(["txt2img", "a red apple", "-o", str(out), *flags]) == 0
    assert signer_of(record_of(out)) == public_key(public)
    assert "signature" not in sealed({"request": {}})
