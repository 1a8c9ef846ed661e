"""Oracle: hashlib over the bytes; what is remembered, against what the file holds now."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from minisd import hashes
from minisd.cli import main
from minisd.errors import CheckpointError
from minisd.hash_cache import cache_folder, remembered_hashes
from minisd.hashes import file_hashes, file_sha256


def lora(path: Path, **metadata: str) -> Path:
    save_file({"a": torch.arange(6.0), "b": torch.ones(2, dtype=torch.float16)}, path, metadata or None)
    return path


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def test_digests(tmp_path: Path) -> None:
    """Oracle: sha256 of all bytes, and of those behind the header; metadata change the first alone."""
    plain, told = lora(tmp_path / "a.safetensors"), lora(tmp_path / "b.safetensors", ss_name="x")
    for path in (plain, told):
        data = path.read_bytes()
        start = 8 + int.from_bytes(data[:8], "little")
        made = file_hashes(path)
        assert (made.sha256, made.body) == (sha(data), sha(data[start:]))
        assert (made.autov2, made.autov3) == (sha(data)[:10], sha(data[start:])[:12])
        assert file_sha256(path) == made.sha256
    assert file_hashes(plain).autov3 == file_hashes(told).autov3
    assert file_hashes(plain).autov2 != file_hashes(told).autov2


@pytest.mark.parametrize("data", [b"", b"abc", b"\x80\x02pickle", b"\xff" * 50, b"\x00" * 8 + b"x"])
def test_files_without_a_header(tmp_path: Path, data: bytes) -> None:
    """Oracle: sha256 alone."""
    path = tmp_path / "x.bin"
    path.write_bytes(data)
    assert file_hashes(path) == hashes.Hashes(sha(data), None)


def test_a_digest_is_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Oracle: the second call reads nothing: reading is made impossible."""
    path, folder = lora(tmp_path / "a.safetensors"), tmp_path / "cache"
    first, known = remembered_hashes(path, folder, settled=0)
    assert not known and len(list(folder.iterdir())) == 1
    monkeypatch.setattr(hashes, "_hashes", None)
    assert remembered_hashes(path, folder, settled=0) == (first, True)
    link = tmp_path / "link.safetensors"
    link.symlink_to(path)
    assert remembered_hashes(link, folder, settled=0) == (first, True)


@pytest.mark.parametrize("how", ["write", "replace", "touch back", "same size and time", "swap"])
def test_what_is_remembered_never_lies(tmp_path: Path, how: str) -> None:
    """Oracle: hashlib over what the file holds now, after every way to change it that keeps what it can."""
    path, other, folder = tmp_path / "a.bin", tmp_path / "b.bin", tmp_path / "cache"
    path.write_bytes(b"first" * 100)
    other.write_bytes(b"other" * 100)
    for p in (path, other):
        os.utime(p, ns=(10**18, 10**18))
        remembered_hashes(p, folder, settled=0)
    if how == "write":
        path.write_bytes(b"a longer content" * 50)
    elif how == "replace":
        os.replace(other, path)  # the other's inode, size and time under this name
    elif how == "swap":
        spare = tmp_path / "spare"
        os.rename(path, spare)
        os.rename(other, path)
        os.rename(spare, other)
    else:
        with open(path, "r+b") as file:  # in place: same inode, same size
            file.write(b"FIRST")
        os.utime(path, ns=(10**18, 10**18) if how == "same size and time" else (1, 1))
    for p in (path, other):
        if p.exists():
            assert remembered_hashes(p, folder, settled=0)[0].sha256 == sha(p.read_bytes())
            assert file_sha256(p) == sha(p.read_bytes())


def test_a_file_just_written_is_not_remembered(tmp_path: Path) -> None:
    """Oracle: the folder: a second writing could fall into the same tick of the file system's clock."""
    folder = tmp_path / "cache"
    remembered_hashes(lora(tmp_path / "a.safetensors"), folder)
    assert not folder.exists()


@pytest.mark.parametrize("damage", ["digit", "state", "text", "empty", "list", "huge"])
def test_a_damaged_entry_counts_as_absent(tmp_path: Path, damage: str) -> None:
    """Oracle: the digest of the file."""
    path, folder = lora(tmp_path / "a.safetensors"), tmp_path / "cache"
    right, _ = remembered_hashes(path, folder, settled=0)
    [entry] = folder.iterdir()
    data = json.loads(entry.read_text())
    if damage == "digit":
        data["content"]["sha256"] = "0" * 64
    elif damage == "state":
        data["content"]["state"]["size"] += 1
    texts = {"text": "{", "empty": "", "list": "[1]", "huge": "[" * 100_000}
    entry.write_text(texts.get(damage, json.dumps(data)))
    assert remembered_hashes(path, folder, settled=0) == (right, False)
    assert remembered_hashes(path, folder, settled=0) == (right, True)  # it was written anew


def test_without_a_folder_that_can_be_written(tmp_path: Path) -> None:
    """Oracle: the digest; a file stands where the folder should be."""
    path, blocked = lora(tmp_path / "a.safetensors"), tmp_path / "blocked"
    blocked.write_text("x")
    assert remembered_hashes(path, blocked / "cache", settled=0)[0] == file_hashes(path)
    assert blocked.read_text() == "x"


def test_where_it_is_remembered(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Oracle: the XDG base directory specification: a relative path is ignored."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "minisd" / "hashes"
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for value in ("", "relative/path"):
        monkeypatch.setenv("XDG_CACHE_HOME", value)
        assert cache_folder() == tmp_path / "home" / ".cache" / "minisd" / "hashes"


def test_a_file_that_changes_while_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Oracle: CheckpointError, and nothing remembered."""
    path, folder = lora(tmp_path / "a.safetensors"), tmp_path / "cache"
    before = hashes.State.of(path)
    real = hashes.check_unchanged
    monkeypatch.setattr(hashes, "check_unchanged", lambda state: (os.utime(path, (1, 1)), real(state)))
    with pytest.raises(CheckpointError, match="changed while it was read"):
        remembered_hashes(path, folder, settled=0)
    assert not folder.exists() and before != hashes.State.of(path)


def test_the_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Oracle: the digests by hand; --no-cache leaves no trace."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = lora(tmp_path / "a.safetensors")
    made = file_hashes(path)
    assert main(["hash", str(path), str(tmp_path), "--no-cache", "--json"]) == 0
    file, folder = json.loads(capsys.readouterr().out)["files"]
    assert (file["sha256"], file["autov2"], file["autov3"]) == (made.sha256, made.autov2, made.autov3)
    assert folder["sha256"] == file_sha256(tmp_path) and folder["autov3"] is None
    assert not (tmp_path / "cache").exists()
    assert main(["hash", str(path)]) == 0
    assert f"AutoV3  {made.autov3}\n" in capsys.readouterr().out
    assert main(["hash", str(tmp_path / "none")]) == 3
