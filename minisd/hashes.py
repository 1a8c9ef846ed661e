"""Digests of model files under the names that the community gives them.

    sha256   of all bytes
    AutoV2   its first 10 digits: "Model hash" of a picture
    AutoV3   the first 12 digits of the sha256 of what follows a safetensors header: "Lora hashes" of a
             picture, the same whatever the metadata say (kohya's sshs_model_hash)

A file is read once for each state in which it is met; `hash_cache.py` remembers beyond the process.
Weights are read when a model is loaded, digests when a picture is kept; a `Stamp` taken before reading tells
whether a file was replaced in between, and then there is no digest rather than that of other bytes.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from minisd.errors import CheckpointError, quoted

WEIGHTS = (".safetensors", ".ckpt", ".pt", ".pth", ".bin")
SHORT, SHORT_BODY = 10, 12  # digits of AutoV2, AutoV3
CHUNK = 4 * 2**20
MAX_HEADER = 100_000_000


@dataclass(frozen=True)
class Hashes:
    """Of one file, in hexadecimal digits. body: sha256 of what follows a safetensors header; None without."""

    sha256: str
    body: str | None

    @property
    def autov2(self) -> str:
        return self.sha256[:SHORT]

    @property
    def autov3(self) -> str | None:
        return None if self.body is None else self.body[:SHORT_BODY]


@dataclass(frozen=True)
class State:
    """What a file is known by without reading it. Writing to it, or putting another in its place, changes at
    least one of these: the change time cannot be set back."""

    path: str  # with every link resolved
    device: int
    inode: int
    size: int
    mtime_ns: int
    ctime_ns: int

    @classmethod
    def of(cls, path: str | os.PathLike[str]) -> State:
        real = os.path.realpath(path)
        stat = os.stat(real)
        return cls(real, stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)


def file_sha256(path: str | os.PathLike[str]) -> str:
    """Of a file's bytes; of a folder, of the names and digests of the weight files in it, in their order.

    Raises CheckpointError where one cannot be read.
    """
    target = Path(path)
    try:
        if target.is_dir():
            lines = [f"{p.relative_to(target).as_posix()} {file_sha256(p)}\n" for p in weight_files(target)]
            return hashlib.sha256("".join(lines).encode()).hexdigest()
        return _sha256(State.of(target))
    except OSError as error:
        raise unreadable(path, error) from error


def weight_files(folder: Path) -> list[Path]:
    return sorted(p for p in folder.rglob("*") if p.suffix in WEIGHTS and p.is_file())


def file_hashes(path: str | os.PathLike[str]) -> Hashes:
    """All digests of a file, which is read once. Raises CheckpointError."""
    try:
        return _hashes(State.of(path))
    except OSError as error:
        raise unreadable(path, error) from error


def unreadable(path: str | os.PathLike[str], error: OSError) -> CheckpointError:
    return CheckpointError(f"cannot read {quoted(path)}: {error.strerror or error}")


@dataclass(frozen=True)
class Stamp:
    """A file, or a folder with its weight files, as it was."""

    path: Path
    states: tuple[State, ...]

    @classmethod
    def of(cls, path: str | os.PathLike[str]) -> Stamp:
        """Raises CheckpointError where it is not there."""
        target = Path(path)
        try:
            return cls(
                target, tuple(State.of(p) for p in (weight_files(target) if target.is_dir() else [target]))
            )
        except OSError as error:
            raise unreadable(path, error) from error

    def sha256(self) -> str | None:
        """The digest of what was there; None if that has changed or gone since."""
        try:
            return file_sha256(self.path) if Stamp.of(self.path) == self else None
        except CheckpointError:
            return None


@lru_cache(maxsize=256)
def _sha256(state: State) -> str:
    with open(state.path, "rb") as file:
        made = hashlib.file_digest(file, "sha256").hexdigest()
    check_unchanged(state)
    return made


@lru_cache(maxsize=256)
def _hashes(state: State) -> Hashes:
    """Keyed by the state: a file that changed is read again."""
    whole, body = hashlib.sha256(), hashlib.sha256()
    with open(state.path, "rb") as file:
        head = file.read(8)
        length = int.from_bytes(head, "little")
        has_body = len(head) == 8 and length <= min(MAX_HEADER, state.size - 8) and file.read(1) == b"{"
        file.seek(0)
        if has_body:
            left = 8 + length
            while left and (part := file.read(min(CHUNK, left))):
                whole.update(part)
                left -= len(part)
        both: tuple[Callable[[bytes], None], ...] = (whole.update, body.update)
        while part := file.read(CHUNK):
            for update in both if has_body else both[:1]:
                update(part)
    check_unchanged(state)
    return Hashes(whole.hexdigest(), body.hexdigest() if has_body else None)


def check_unchanged(state: State) -> None:
    """Raises CheckpointError if the file is not what it was when reading began."""
    if State.of(state.path) != state:
        raise CheckpointError(
            f"{quoted(state.path)} changed while it was read; try again when it is complete"
        )
