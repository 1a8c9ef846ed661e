"""Digests of files remembered on disk, so that a model of seven gigabytes is read once and not at every call.

An entry holds for one state of one file: path, device, inode, size, time of its last writing and of its last
change. The last one follows every writing and cannot be set back, so an entry is out of date and not wrong. A
file that was written to within the last seconds is not remembered: the clock of a file system is coarse, and
a second writing could fall into the same tick. An entry that is damaged, or that was written for something
else, counts as absent. A folder that cannot be written to costs time and nothing else.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
from dataclasses import asdict
from pathlib import Path

from minisd.atomic import write_bytes
from minisd.errors import ImageError
from minisd.hashes import Hashes, State, file_hashes, unreadable

SETTLED = 3.0  # seconds after its last change when a file is remembered
MAX_ENTRY = 20_000  # bytes
DIGEST = re.compile(r"[0-9a-f]{64}")


def cache_folder() -> Path:
    """Below XDG_CACHE_HOME, which counts only if it is absolute, or below ~/.cache."""
    said = os.environ.get("XDG_CACHE_HOME", "")
    root = Path(said) if os.path.isabs(said) else Path(os.path.expanduser("~")) / ".cache"
    return root / "minisd" / "hashes"


def remembered_hashes(
    path: str | os.PathLike[str], folder: Path | None = None, *, settled: float = SETTLED
) -> tuple[Hashes, bool]:
    """(digests of a file, whether they were remembered). folder: of the entries (None: `cache_folder`).

    Raises CheckpointError where the file cannot be read.
    """
    try:
        state = State.of(path)
    except OSError as error:
        raise unreadable(path, error) from error
    folder = cache_folder() if folder is None else folder
    entry = folder / f"{hashlib.sha256(os.fsencode(state.path)).hexdigest()[:32]}.json"
    known = read_entry(entry, state)
    if known is not None:
        return known, True
    made = file_hashes(path)
    if time.time() - max(state.mtime_ns, state.ctime_ns) / 1e9 >= settled:
        write_entry(entry, state, made)
    return made, False


def check_of(content: object) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def read_entry(entry: Path, state: State) -> Hashes | None:
    """What is remembered of a file in this state; None where nothing is, or not this."""
    try:
        with open(entry, "rb") as file:
            data = json.loads(file.read(MAX_ENTRY))
    except (OSError, ValueError, RecursionError):
        return None
    content = data.get("content") if isinstance(data, dict) else None
    if not isinstance(content, dict) or data.get("check") != check_of(content):
        return None
    if content.get("state") != asdict(state):
        return None
    sha256, body = content.get("sha256"), content.get("body")
    if not isinstance(sha256, str) or not DIGEST.fullmatch(sha256):
        return None
    if body is not None and not (isinstance(body, str) and DIGEST.fullmatch(body)):
        return None
    return Hashes(sha256, body)


def write_entry(entry: Path, state: State, made: Hashes) -> None:
    content = {"state": asdict(state), "sha256": made.sha256, "body": made.body}
    text = json.dumps({"content": content, "check": check_of(content)})
    try:
        entry.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(text.encode(), entry)
    except (OSError, ImageError):
        return  # remembering is a convenience
