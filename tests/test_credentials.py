"""Oracle: c2pa-python's own reader (content credentials); chains made here, by an authority made here."""

from __future__ import annotations

import datetime
import importlib.util
import json
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from PIL import Image

from minisd.cli import main
from minisd.credentials import LABEL, SOURCE, Credentials, CredentialsError, manifest
from minisd.engine import Engine, load
from minisd.metadata import read_file
from minisd.request import Request
from minisd.verify import record_of, verify
from tests.tiny import TINY, tiny_model, write_checkpoint

PIXELS = {
    ".png": b"IDAT",
    ".jpg": b"\xff\xda\x00\x0c",
    ".webp": b"VP8 ",
    ".avif": b"mdat",
}  # what stands before them
needs_c2pa = pytest.mark.skipif(importlib.util.find_spec("c2pa") is None, reason="the extra c2pa")


def authority(folder: Path) -> tuple[Path, Path]:
    """(chain, key): a certificate for signing documents, as C2PA asks for it, and the root that issued it."""
    keys = [ec.generate_private_key(ec.SECP256R1()) for _ in range(2)]
    names = [
        x509.Name(
            [
                x509.NameAttribute(x509.NameOID.ORGANIZATION_NAME, "minisd tests"),
                x509.NameAttribute(x509.NameOID.COMMON_NAME, name),
            ]
        )
        for name in ("root of the tests", "signer of the tests")
    ]
    now = datetime.datetime.now(datetime.UTC)
    made = []
    for i, (key, name) in enumerate(zip(keys, names, strict=True)):
        usage = x509.KeyUsage(i == 1, False, False, False, False, i == 0, i == 0, False, False)
        builder = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(names[0])
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=1))
            .not_valid_after(now + datetime.timedelta(days=30))
            .add_extension(x509.BasicConstraints(i == 0, None), critical=True)
            .add_extension(usage, critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(keys[0].public_key()), critical=False
            )
        )
        if i == 1:
            purpose = [x509.ExtendedKeyUsageOID.EMAIL_PROTECTION]
            builder = builder.add_extension(x509.ExtendedKeyUsage(purpose), critical=False)
        made.append(builder.sign(keys[0], hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
    chain, secret = folder / "chain.pem", folder / "key.pem"
    chain.write_bytes(made[1] + made[0])
    secret.write_bytes(
        keys[1].private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    return chain, secret


def test_the_manifest_says_how_it_was_made() -> None:
    """Oracle: the names of C2PA 2.x and of IPTC."""
    told = json.loads(manifest({"request": {"seed": 1}}))
    created, own = told["assertions"]
    assert created["label"] == "c2pa.actions.v2"
    assert created["data"]["actions"][0]["action"] == "c2pa.created"
    assert created["data"]["actions"][0]["digitalSourceType"] == SOURCE
    assert own == {"label": LABEL, "data": {"request": {"seed": 1}}}


def test_keys_that_cannot_be_used(tmp_path: Path) -> None:
    """Oracle: CredentialsError saying what."""
    chain, key = authority(tmp_path)
    with pytest.raises(CredentialsError, match="'md5' is not one of"):
        Credentials.of(chain, key, "md5")
    with pytest.raises(CredentialsError, match=r"cannot read .*none\.pem"):
        Credentials.of(tmp_path / "none.pem", key)
    (tmp_path / "der").write_bytes(b"\xff\xfe")
    with pytest.raises(CredentialsError, match="as PEM"):
        Credentials.of(chain, tmp_path / "der")


@pytest.mark.skipif(importlib.util.find_spec("c2pa") is not None, reason="the extra c2pa is there")
def test_without_the_package(tmp_path: Path) -> None:
    """Oracle: CredentialsError naming the extra, and no picture."""
    with pytest.raises(CredentialsError, match=r"minisd\[c2pa\]"):
        Credentials.of(*authority(tmp_path)).embedded(b"", "PNG", {})


def manifest_in(path: Path) -> tuple[dict[str, object], dict[str, object]]:
    """(all that c2pa-python reads of a picture, its active manifest)."""
    import c2pa  # pyright: ignore[reportMissingImports]  # an extra

    with c2pa.Reader(path) as reader:
        told = json.loads(reader.json())
    return told, told["manifests"][told["active_manifest"]]


def failures(told: dict[str, object]) -> set[str]:
    """What does not hold, but that nobody has put the tests' root on a list of trust."""
    codes = {str(s["code"]) for s in told.get("validation_status", [])}  # type: ignore[attr-defined]
    return codes - {"signingCredential.untrusted"}


@needs_c2pa
@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".avif"])
def test_content_credentials(suffix: str, tmp_path: Path) -> None:
    """Oracle: c2pa-python's reader finds the manifest whole with our record in it, other readers both texts,
    and the pixels are those that were drawn; inverse: a byte of the pixels changed."""
    path = write_checkpoint(tmp_path / "tiny.safetensors", TINY["sd1"])
    with load(path) as engine:
        result = engine.run(Request(prompt="a cat, café", seed=3, steps=2))
        out = result.save(tmp_path / f"x{suffix}", credentials=Credentials.of(*authority(tmp_path)))[0]
        assert verify(out, engine).verdict == "proven"
    told, active = manifest_in(out)
    assert failures(told) == set()
    assertions = {a["label"]: a["data"] for a in active["assertions"]}  # type: ignore[attr-defined]
    assert assertions["c2pa.actions.v2"]["actions"][0]["digitalSourceType"] == SOURCE
    assert assertions[LABEL]["request"]["prompt"] == "a cat, café"
    assert assertions[LABEL]["seals"] == record_of(out)["seals"]
    assert read_file(out).texts["parameters"].startswith("a cat, café\nSteps: 2")
    if suffix == ".png":
        with Image.open(out) as image:
            assert image.tobytes() == result.image.tobytes()
    data = bytearray(out.read_bytes())
    data[data.rindex(PIXELS[suffix]) + 40] ^= 1
    changed = tmp_path / f"changed{suffix}"
    changed.write_bytes(data)
    assert failures(manifest_in(changed)[0]) <= {"assertion.dataHash.mismatch", "assertion.bmffHash.mismatch"}
    assert failures(manifest_in(changed)[0])


@needs_c2pa
def test_a_chain_that_c2pa_does_not_take(tmp_path: Path) -> None:
    """Oracle: CredentialsError, and no picture is left."""
    chain, key = authority(tmp_path)
    (tmp_path / "other").mkdir()
    _, other = authority(tmp_path / "other")
    result = Engine(tiny_model("sd1")).run(Request(prompt="a cat", seed=3, steps=1))
    with pytest.raises(CredentialsError, match="were not written"):
        result.save(tmp_path / "x.png", credentials=Credentials.of(chain, other))
    assert not list(tmp_path.glob("x*"))


@needs_c2pa
def test_the_flag(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Oracle: a manifest in the picture that the command wrote."""
    chain, key = authority(tmp_path)
    out = tmp_path / "a.png"
    flags = ["--steps", "1", "--seed", "1", "--c2pa", str(chain), str(key)]
    assert main(["txt2img", "a red apple", "-o", str(out), "-q", *flags]) == 0
    assert failures(manifest_in(out)[0]) == set()
