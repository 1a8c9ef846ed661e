"""Oracle: the bundle format of OpenSSF's model-signing 1.1, signed here with a key made here; its own signer
where it is installed."""

from __future__ import annotations

import base64
import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from minisd.cli import main
from minisd.engine import load
from minisd.errors import CheckpointError, RequestError
from minisd.trust import PAYLOAD_TYPE, PREDICATE, STATEMENT, Proof, proven, sha256_of
from tests import tiny

ec = pytest.importorskip("cryptography.hazmat.primitives.asymmetric.ec")
from cryptography.hazmat.primitives import hashes, serialization  # noqa: E402

CURVES = {"p256": (ec.SECP256R1, hashes.SHA256), "p521": (ec.SECP521R1, hashes.SHA512)}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return tiny.write_checkpoint(tmp_path / "tiny.safetensors", tiny.TINY["sd1"])


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def key_in(folder: Path, curve: str = "p256") -> ec.EllipticCurvePrivateKey:
    """A new key; its public half is written beside the model."""
    key = ec.generate_private_key(CURVES[curve][0]())
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    (folder / "key.pem").write_bytes(key.public_key().public_bytes(serialization.Encoding.PEM, form))
    return key


def statement(files: dict[str, str]) -> dict[str, object]:
    root = hashlib.sha256(b"".join(bytes.fromhex(d) for d in files.values())).hexdigest()
    serial = {"method": "files", "hash_type": "sha256", "allow_symlinks": False, "ignore_paths": [".git"]}
    resources = [{"name": n, "algorithm": "sha256", "digest": d} for n, d in files.items()]
    return {
        "_type": STATEMENT,
        "subject": [{"name": "model", "digest": {"sha256": root}}],
        "predicateType": PREDICATE,
        "predicate": {"serialization": serial, "resources": resources},
    }


def signed(
    key: ec.EllipticCurvePrivateKey, said: dict[str, object], curve: str = "p256"
) -> dict[str, object]:
    payload = json.dumps(said).encode()
    message = b"DSSEv1 %d %s %d %s" % (len(PAYLOAD_TYPE), PAYLOAD_TYPE.encode(), len(payload), payload)
    signature = key.sign(message, ec.ECDSA(CURVES[curve][1]()))
    envelope = {
        "payload": base64.b64encode(payload).decode(),
        "payloadType": PAYLOAD_TYPE,
        "signatures": [{"sig": base64.b64encode(signature).decode(), "keyid": ""}],
    }
    kind = "application/vnd.dev.sigstore.bundle.v0.3+json"
    return {"mediaType": kind, "verificationMaterial": {}, "dsseEnvelope": envelope}


def check(path: Path, bundle: object) -> None:
    place = path.parent / "model.sig" if path.is_file() else path.parent / f"{path.name}.sig"
    place.write_text(json.dumps(bundle))
    with proven(path, Proof(signature=place, public_key=path.parent / "key.pem")):
        pass


@pytest.mark.parametrize("curve", CURVES)
@pytest.mark.parametrize("name", [".", "tiny.safetensors"])  # signed as a file, or in its folder
def test_a_signed_file_loads(model: Path, name: str, curve: str) -> None:
    bundle = signed(key_in(model.parent, curve), statement({name: digest(model)}), curve)
    (model.parent / "model.sig").write_text(json.dumps(bundle))
    keys = {"signature": model.parent / "model.sig", "public_key": model.parent / "key.pem"}
    load(model, device="cpu", sha256=digest(model).upper(), **keys).close()


def test_a_changed_file_is_refused_before_it_is_read(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = signed(key_in(model.parent), statement({".": digest(model)}))
    raw = bytearray(model.read_bytes())
    raw[-1] ^= 1
    model.write_bytes(raw)
    monkeypatch.setattr("minisd.model.opened", lambda *_: pytest.fail("opened"))
    (model.parent / "model.sig").write_text(json.dumps(bundle))
    with pytest.raises(CheckpointError, match="the file was changed after it was signed"):
        load(model, signature=model.parent / "model.sig", public_key=model.parent / "key.pem")


def tampered(change: Callable[[dict[str, object]], object]) -> Callable[[dict], dict]:
    """The bundle with its signed statement changed and not signed again."""

    def apply(bundle: dict) -> dict:
        said = json.loads(base64.b64decode(bundle["dsseEnvelope"]["payload"]))
        change(said)
        bundle["dsseEnvelope"]["payload"] = base64.b64encode(json.dumps(said).encode()).decode()
        return bundle

    return apply


@pytest.mark.parametrize(
    "change,message",
    [
        (tampered(lambda s: s["predicate"]["resources"][0].update(digest="00" * 32)), "does not hold"),
        (tampered(lambda s: s["predicate"]["resources"].clear()), "does not hold"),
        (lambda b: b | {"mediaType": "text/plain"}, "is no bundle of model-signing"),
        (lambda b: b | {"dsseEnvelope": b["dsseEnvelope"] | {"payloadType": "x"}}, "is no bundle"),
        (lambda b: b | {"dsseEnvelope": b["dsseEnvelope"] | {"signatures": []}}, "is no bundle"),
        (lambda b: b | {"dsseEnvelope": {}}, "is no bundle"),
        (lambda b: [b], "is no bundle"),
        (
            lambda b: b | {"dsseEnvelope": b["dsseEnvelope"] | {"signatures": [{"sig": "AAAA"}]}},
            "does not hold",
        ),
    ],
)
def test_tampered_bundles(model: Path, change: Callable[[dict], object], message: str) -> None:
    bundle = signed(key_in(model.parent), statement({".": digest(model)}))
    check(model, bundle)
    with pytest.raises(CheckpointError, match=message):
        check(model, change(bundle))


@pytest.mark.parametrize(
    "change",
    [
        lambda s: s | {"_type": "https://in-toto.io/Statement/v0.1"},
        lambda s: s | {"predicateType": "https://slsa.dev/provenance/v1"},
        lambda s: s | {"subject": [{"name": "m", "digest": {"sha256": "00" * 32}}]},
        lambda s: s | {"predicate": {}},
        lambda s: s | {"predicate": s["predicate"] | {"serialization": {"method": "shards"}}},
    ],
)
def test_signed_by_the_key_but_no_list_of_files(model: Path, change: Callable[[dict], dict]) -> None:
    key = key_in(model.parent)
    with pytest.raises(CheckpointError, match="is signed, but does not list files by their sha256"):
        check(model, signed(key, change(statement({".": digest(model)}))))


def test_other_keys(model: Path) -> None:
    bundle = signed(key_in(model.parent), statement({".": digest(model)}))
    key_in(model.parent)  # another one lies there now
    with pytest.raises(CheckpointError, match="by another key"):
        check(model, bundle)
    (model.parent / "key.pem").write_text("-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n")
    with pytest.raises(CheckpointError, match="not PEM that can be read"):
        check(model, bundle)


def test_folders(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    (folder / "unet").mkdir(parents=True)
    (folder / "unet" / "a.bin").write_bytes(b"a")
    (folder / "b.json").write_bytes(b"b")
    files = {"b.json": digest(folder / "b.json"), "unet/a.bin": digest(folder / "unet" / "a.bin")}
    bundle = signed(key_in(tmp_path), statement(files))
    check(folder, bundle)
    (folder / ".gitignore").write_bytes(b"x")  # never signed
    check(folder, bundle)
    (folder / "more.json").write_bytes(b"x")
    with pytest.raises(CheckpointError, match="the signature does not cover 'more.json'"):
        check(folder, bundle)
    (folder / "more.json").unlink()
    (folder / "b.json").unlink()
    with pytest.raises(CheckpointError, match="signed files are not there: 'b.json'"):
        check(folder, bundle)
    with pytest.raises(CheckpointError, match="a sha256 pins one file"), proven(folder, Proof("00" * 32)):
        pass


def test_a_file_exchanged_while_it_is_opened(model: Path) -> None:
    def exchange() -> None:
        with proven(model, Proof(digest(model))):
            os.replace(tiny.write_checkpoint(model.with_name("x.safetensors"), tiny.TINY["sd1"]), model)

    with pytest.raises(CheckpointError, match="changed while it was checked"):
        exchange()


def test_wrong_words(model: Path) -> None:
    with pytest.raises(RequestError, match="64 hexadecimal digits"):
        load(model, sha256="abc")
    with pytest.raises(RequestError, match="signature and public_key go together"):
        load(model, signature="x.sig")
    with pytest.raises(CheckpointError, match="does not exist"):
        load(model, signature="gone.sig", public_key="gone.pem")


def test_on_the_command_line(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = main(
        ["txt2img", "a cat", "-m", str(model), "-o", str(model.parent / "x.png"), "--sha256", "ab" * 32]
    )
    assert code == 3 and f"expected {'ab' * 32}" in capsys.readouterr().err
    assert not (model.parent / "x.png").exists()


def test_their_signer(model: Path) -> None:
    """Oracle: model-signing itself signs the file, and the folder."""
    signing = pytest.importorskip("model_signing").signing
    key = key_in(model.parent)
    plain = serialization.NoEncryption()
    form = serialization.PrivateFormat.PKCS8
    private = model.parent / "private.pem"
    private.write_bytes(key.private_bytes(serialization.Encoding.PEM, form, plain))
    folder = model.parent / "folder"
    folder.mkdir()
    os.link(model, folder / "a.safetensors")
    for path in (model, folder):
        place = model.parent / "theirs.sig"
        signing.Config().use_elliptic_key_signer(private_key=private).sign(path, place)
        with proven(path, Proof(signature=place, public_key=model.parent / "key.pem")):
            pass


def test_sha256_of_any_length(tmp_path: Path) -> None:
    """Oracle: hashlib over the whole."""
    for size in (0, 1, 2**22, 2**22 + 5):
        (tmp_path / "x").write_bytes(os.urandom(size))
        assert sha256_of(tmp_path / "x") == digest(tmp_path / "x")
