"""sha256 of model files, made once for each file as it is on disk."""

from __future__ import annotations

import hashlib
import os
from functools import lru_cache
from pathlib import Path

from minisd.errors import CheckpointError, quoted

WEIGHTS = (".safetensors", ".ckpt", ".pt", ".pth", ".bin")
SHORT = 10  # digits of the community's "Model hash" (AutoV2)


def file_sha256(path: str | os.PathLike[str]) -> str:
    """Of a file's bytes; of a folder, of the names and digests of the weight files in it, in their order.

    Raises CheckpointError where one cannot be read.
    """
    target = Path(path)
    try:
        if target.is_dir():
            files = sorted(p for p in target.rglob("*") if p.suffix in WEIGHTS and p.is_file())
            lines = [f"{p.relative_to(target).as_posix()} {file_sha256(p)}\n" for p in files]
            return hashlib.sha256("".join(lines).encode()).hexdigest()
        stat = target.stat()
        return _sha256(os.path.abspath(target), stat.st_size, stat.st_mtime_ns)
    except OSError as error:
        raise CheckpointError(f"cannot read {quoted(path)}: {error.strerror or error}") from error


@lru_cache(maxsize=256)
def _sha256(path: str, size: int, mtime_ns: int) -> str:
    """Keyed by size and time as well: a file that changed is read again."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
