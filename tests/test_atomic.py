"""Oracle: what is in the folder afterwards. Rows F30 and F31 of the fault table."""

from __future__ import annotations

import errno
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from minisd.atomic import write_bytes
from minisd.engine import Engine
from minisd.errors import ImageError
from minisd.request import Request
from tests.tiny import tiny_model


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def test_a_name_that_is_taken(tmp_path: Path) -> None:
    """F30: replaced, numbered or refused, as asked; nothing else is there afterwards."""
    path = tmp_path / "a.png"
    assert write_bytes(b"1", path) == path
    assert write_bytes(b"2", path) == path and path.read_bytes() == b"2"
    assert [write_bytes(b"3", path, exists="number").name for _ in range(2)] == ["a-2.png", "a-3.png"]
    with pytest.raises(ImageError, match="exists already"):
        write_bytes(b"4", path, exists="refuse")
    assert names(tmp_path) == ["a-2.png", "a-3.png", "a.png"] and path.read_bytes() == b"2"


@pytest.mark.parametrize("exists", ["number", "replace", "refuse"])
def test_a_link_at_the_target(exists: str, tmp_path: Path) -> None:
    """F30: what the link points to is never written to."""
    outside = tmp_path / "outside"
    outside.write_bytes(b"mine")
    folder = tmp_path / "pictures"
    folder.mkdir()
    (folder / "a.png").symlink_to(outside)
    try:
        write_bytes(b"new", folder / "a.png", exists=exists)  # type: ignore[arg-type]
    except ImageError:
        assert exists == "refuse"
    assert outside.read_bytes() == b"mine"


@pytest.mark.parametrize(
    "name", ["CON", "com1.png", "NUL.png", "", "a\0.png", "a\n.png", "ä" * 101, "no/x.png"]
)
def test_names_that_no_file_can_have(name: str, tmp_path: Path) -> None:
    """F30: ImageError of one line, nothing written."""
    with pytest.raises(ImageError) as caught:
        write_bytes(b"x", f"{tmp_path}/{name}" if name else "")
    assert "\n" not in str(caught.value) and names(tmp_path) == []


def test_many_writers_of_one_name(tmp_path: Path) -> None:
    """Oracle: every one of 40 writers has a file of its own."""
    with ThreadPoolExecutor(8) as pool:
        made = list(
            pool.map(lambda i: write_bytes(b"%d" % i, tmp_path / "a.png", exists="number"), range(40))
        )
    assert len(set(made)) == 40 == len(names(tmp_path))
    assert sorted(int(p.read_bytes()) for p in made) == list(range(40))


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EROFS])
@pytest.mark.parametrize("where", ["fsync", "replace"])
def test_a_disk_that_fails(code: int, where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """F31: ImageError with the system's reason, no part of a file, what was there is as it was."""
    path = tmp_path / "a.png"
    path.write_bytes(b"before")

    def fail(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, where, fail)
    with pytest.raises(ImageError, match=os.strerror(code)):
        write_bytes(b"new", path)
    assert names(tmp_path) == ["a.png"] and path.read_bytes() == b"before"


def test_a_folder_that_goes_while_a_picture_is_drawn(tmp_path: Path) -> None:
    """F31: ImageError that says so; the engine is as it was, and the picture can be saved elsewhere."""
    folder = tmp_path / "gone"
    folder.mkdir()
    result = Engine(tiny_model("sd1")).run(Request(prompt="a cat", seed=1, steps=1))
    shutil.rmtree(folder)
    with pytest.raises(ImageError, match="does not exist"):
        result.save(folder / "a.png")
    assert [p.name for p in result.save(tmp_path / "a.png")] == ["a.png"]


def test_a_picture_goes_with_what_belongs_to_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """F31: where the file beside a picture cannot be written, the picture is not left alone."""
    monkeypatch.setattr("minisd.sidecar.INSIDE", 100)
    result = Engine(tiny_model("sd1")).run(Request(prompt="a cat", seed=1, steps=1))
    (tmp_path / "a.png.json").mkdir()
    with pytest.raises(ImageError, match=r"a\.png\.json"):
        result.save(tmp_path / "a.png")
    assert names(tmp_path) == ["a.png.json"]
