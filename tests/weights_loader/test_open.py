"""Oracle: files of each kind, made by the programs that write them or by their published first bytes."""

from __future__ import annotations

import gzip
import io
import json
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from minisd.errors import CheckpointError
from minisd.weights_loader.open import open_source
from tests.weights_loader.malformed import GOOD, SAFETENSORS_CASES, written
from tests.weights_loader.malformed import safetensors as build
from tests.weights_loader.malformed_pickle import legacy
from tests.weights_loader.malformed_zip import checkpoint

HTML = b"<!DOCTYPE html>\n<html><head><title>\n 404 Not\x1b Found</title></head></html>"
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"ab" * 32 + b"\nsize 4265380512\n"
S3 = b'<?xml version="1.0"?><Error><Code>NoSuchKey</Code><Message>The key does not exist.</Message></Error>'


def tar(name: str) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        info = tarfile.TarInfo(name)
        info.size = 4
        archive.addfile(info, io.BytesIO(b"data"))
    return buffer.getvalue()


def npz() -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, a=np.ones(3))
    return buffer.getvalue()


FOREIGN: list[tuple[str, bytes, str]] = [
    ("empty", b"", r"empty \(0 bytes\); the download did not finish"),
    ("html", HTML, r"is an HTML page, not weights \(a failed download: .404 Not\\x1b Found"),
    (
        "html-no-title",
        b"<html><body>Sign in</body></html>",
        r"is an HTML page, not weights \(a failed download\)",
    ),
    ("html-bom", b"\xef\xbb\xbf \n<html><title>x</title>", r"is an HTML page.*'x'"),
    ("xml", S3, r"is an XML document, not weights \(a failed download: 'The key does not exist.'"),
    (
        "json-error",
        b'{"error": "Repository not found"}',
        r"a JSON text, not weights \(a failed download: 'Repository not f",
    ),
    ("json-list", b"[1, 2]", r"JSON or other text, not weights|JSON text"),
    ("json-broken", b'{"error": ', r"JSON or other text, not weights"),
    ("json-deep", b'{"a":' + b"[" * 100_000, r"JSON or other text, not weights"),
    ("json-config", b'{"_class_name": "UNet2DConditionModel"}', r"a diffusers configuration, not weights"),
    ("text", b"Entry not found", r"is text, not weights .*'Entry not found'"),
    (
        "lfs",
        LFS,
        r"a git-lfs pointer to a 4.27 GB file \(oid abababababab...\), not the file itself; run git lfs pull",
    ),
    ("gguf", b"GGUF\3\0\0\0" + bytes(40), r"is a GGUF file \(quantised\)"),
    ("onnx", b"\x08\x07\x12\x07pytorch\x1a\x051.9.0" + bytes(90), r"is an ONNX model"),
    ("gzip", gzip.compress(GOOD), r"is a gzip archive; unpack it"),
    ("7z", b"7z\xbc\xaf\x27\x1c\0\4" + bytes(40), r"is a 7z archive; unpack it"),
    ("rar", b"Rar!\x1a\x07\1\0" + bytes(20), r"is a RAR archive"),
    ("tar", tar("sys_info"), r"is a tar archive \(checkpoints of torch 0.1 are\).*isolated machine"),
    ("hdf5", b"\x89HDF\r\n\x1a\n" + bytes(20), r"is an HDF5 file"),
    ("npy", b"\x93NUMPY\1\0v\0" + bytes(120), r"is a NumPy array"),
    ("npz", npz(), r"NumPy .npz archive with 0 records|its zip64|two headers"),
    ("empty-zip", b"PK\5\6" + bytes(18), r"is an empty zip archive"),
    ("png", b"\x89PNG\r\n\x1a\n" + bytes(20), r"is a PNG picture"),
    ("noise", bytes(range(128, 228)), r"of no known format|header length"),
    ("plain-pickle", b"\x80\x02}.", r"is a plain pickle|not a checkpoint"),
    ("pickle-4", b"\x80\x04\x95" + bytes(20), r"pickle protocol 4; torch.save writes 2"),
]


@pytest.mark.parametrize("suffix", [".ckpt", "", ".bin"])
@pytest.mark.parametrize(("content", "message"), [c[1:] for c in FOREIGN], ids=[c[0] for c in FOREIGN])
def test_foreign_files_are_named(tmp_path: Path, content: bytes, message: str, suffix: str) -> None:
    with pytest.raises(CheckpointError, match=message) as caught:
        open_source(written(tmp_path, "x" + suffix, content))
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("content", "message"), [c[1:] for c in SAFETENSORS_CASES], ids=[c[0] for c in SAFETENSORS_CASES]
)
def test_malformed_safetensors_keep_their_sentence(tmp_path: Path, content: bytes, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        source = open_source(written(tmp_path, "x.safetensors", content))
        for name in source.tensors:
            source.read(name)


@pytest.mark.parametrize("name", ["x.safetensors", "x.ckpt", "x.pt", "x", "x.html"])
def test_safetensors_is_read_under_any_name(tmp_path: Path, name: str) -> None:
    source = open_source(written(tmp_path, name, GOOD))
    assert source.container == "safetensors" and set(source.tensors) == {"a", "b"}


@pytest.mark.parametrize(("content", "container"), [(checkpoint(), "torch zip"), (legacy(), "torch legacy")])
def test_pickles_are_read_under_any_name_but_safetensors(
    tmp_path: Path, content: bytes, container: str
) -> None:
    for name in ("x.ckpt", "x.pt", "x.bin", "x"):
        assert open_source(written(tmp_path, name, content)).container == container
    for name in ("x.safetensors", "X.SAFETENSORS", "x.sft"):
        with pytest.raises(
            CheckpointError, match=r"content is a PyTorch (zip checkpoint|pickle) though the name says"
        ):
            open_source(written(tmp_path, name, content))


def test_index_of_shards(tmp_path: Path) -> None:
    safetensors.torch.save_file({"a": torch.ones(2)}, tmp_path / "1.safetensors")
    index = written(
        tmp_path, "m.safetensors.index.json", json.dumps({"weight_map": {"a": "1.safetensors"}}).encode()
    )
    source = open_source(index)
    assert source.container == "sharded safetensors" and torch.equal(source.read("a"), torch.ones(2))


def test_folders_get_advice(tmp_path: Path) -> None:
    with pytest.raises(
        CheckpointError, match="is a directory; expected a checkpoint file; it holds no checkpoint file"
    ):
        open_source(tmp_path)
    written(tmp_path, "b.ckpt", b"")
    written(tmp_path, "a.safetensors", b"")
    with pytest.raises(CheckpointError, match="it holds 'a.safetensors', 'b.ckpt': give one of these"):
        open_source(tmp_path)
    written(tmp_path, "model_index.json", b"{}")
    with pytest.raises(CheckpointError, match="is a diffusers folder, not one file"):
        open_source(tmp_path)


def test_what_is_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(tmp_path / "fifo.ckpt")
    for path, message in (
        (tmp_path / "fifo.ckpt", "fifo.ckpt is a FIFO; expected a checkpoint file"),
        (Path("/dev/zero"), "zero is a device"),
        (tmp_path / "none.safetensors", "none.safetensors' does not exist; check the path"),
        (tmp_path / "a\0b", "is no path"),
    ):
        with pytest.raises(CheckpointError, match=message):
            open_source(path)
    written(tmp_path, "x.ckpt", b"x")

    def denied(*_: object) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", denied)
    with pytest.raises(CheckpointError, match=r"x.ckpt cannot be opened: Permission denied \(EACCES\)"):
        open_source(tmp_path / "x.ckpt")


def test_files_are_closed_after_a_refusal(tmp_path: Path) -> None:
    if not os.path.isdir("/proc/self/fd"):
        pytest.skip("open files are counted through /proc")
    before = len(os.listdir("/proc/self/fd"))
    for _, content, _ in FOREIGN:
        with pytest.raises(CheckpointError):
            open_source(written(tmp_path, "x", content))
    with pytest.raises(CheckpointError):
        open_source(written(tmp_path, "x.safetensors", build("[]")))
    assert len(os.listdir("/proc/self/fd")) == before


@settings(max_examples=300, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.sampled_from([c[1] for c in FOREIGN] + [GOOD, checkpoint(), legacy()]),
    st.binary(max_size=12),
    st.integers(0, 40),
)
def test_fuzz_first_bytes_only_checkpoint_errors(
    tmp_path: Path, content: bytes, patch: bytes, at: int
) -> None:
    blob = content[:at] + patch + content[at + len(patch) :]
    try:
        open_source(written(tmp_path, "x", blob)).close()
    except CheckpointError as error:
        assert str(error).isprintable()
