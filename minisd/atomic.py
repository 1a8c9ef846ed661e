"""Files written whole or not at all, and never over another one by accident.

Bytes go to a temporary file beside the target, which then takes the target's name in one step. `exists` says
what happens when that name is taken: the next free number is appended, the file is replaced, or it is an
error.
"""

from __future__ import annotations

import os
import re
import secrets
from pathlib import Path
from typing import Literal

from minisd.errors import ImageError, quoted

Exists = Literal["number", "replace", "refuse"]
RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)  # devices under Windows
MAX_NUMBER = 100_000


def check_name(target: Path) -> None:
    """Raises ImageError for a name that no file can have everywhere, or whose folder is missing."""
    if not target.name or any(ord(c) < 32 for c in str(target)):
        raise ImageError(f"{quoted(target)} cannot name a file; choose a name without control characters")
    if RESERVED.fullmatch(target.name):
        raise ImageError(f"{quoted(target.name)} names a device under Windows; choose another name")
    if len(os.fsencode(target.name)) > 200:
        raise ImageError(f"the name {quoted(target.name, 60)} is longer than 200 bytes; choose a shorter one")
    if not target.parent.is_dir():
        raise ImageError(f"the folder {quoted(target.parent)} does not exist; make it first")


def write_bytes(
    data: bytes, path: str | os.PathLike[str], *, exists: Exists = "replace", first: int = 1
) -> Path:
    """Write a file whole, and return the name it got. Numbers are name-2, name-3, ...; `first` is the number
    that `path` itself stands for. Raises ImageError if it cannot be written."""
    target = Path(path)
    check_name(target)
    part = target.parent / f".{target.name}.{secrets.token_hex(4)}.part"
    try:
        try:
            with open(part, "xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            if exists == "replace":
                os.replace(part, target)
                return target
            return named(part, target, exists, first)
        finally:
            part.unlink(missing_ok=True)
    except OSError as error:
        raise ImageError(f"cannot write {quoted(target)}: {error.strerror or error}") from error


def named(part: Path, target: Path, exists: Exists, first: int) -> Path:
    """`part` under the target's name or the next free number; no other process can take it in between."""
    stem = re.sub(r"-\d+$", "", target.stem) if first > 1 or target.stem.endswith("-1") else target.stem
    for number in range(first, MAX_NUMBER):
        name = target if number == first else target.with_stem(f"{stem}-{number}")
        try:
            try:
                os.link(part, name)  # fails where the name is taken
            except FileExistsError:
                raise
            except OSError:  # a file system without hard links: take the name first, then fill it
                os.close(os.open(name, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
                os.replace(part, name)
            return name
        except FileExistsError as error:
            if exists == "refuse":
                raise ImageError(f"{quoted(target)} exists already; choose another name") from error
    raise ImageError(f"{quoted(target)} and its next {MAX_NUMBER:,} numbers exist already")
