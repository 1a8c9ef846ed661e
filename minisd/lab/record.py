"""One line of JSON for each run of the laboratory: what was run, where, and what came of it."""

from __future__ import annotations

import datetime
import hashlib
import importlib.metadata
import json
import platform
from pathlib import Path

import torch


def machine() -> dict[str, object]:
    """Versions, and the device that computes."""
    names = ("torch", "triton", "numpy")
    found = {n: importlib.metadata.version(n) for n in names if has(n)}
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or "cpu"
    return {"python": platform.python_version(), **found, "cuda": torch.version.cuda, "device": device}


def has(package: str) -> bool:
    try:
        importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def row(what: str, results: dict[str, object], sources: tuple[Path, ...] = ()) -> dict[str, object]:
    """A record of one run. sources: files whose SHA-256 says what was run."""
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    hashes = {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sources}
    return {"what": what, "date": now, "machine": machine(), "sources": hashes, **results}


def append(path: Path, record: dict[str, object]) -> None:
    """Add the record to a file of lines."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")
