"""Opens a checkpoint by what it is, never by what it is called, and names what it is when it is not one.

The first bytes decide. A name may be wrong in the harmless direction (`.ckpt` that holds safetensors); a
`.safetensors` that holds a pickle is refused, because whoever chose it believed it held no pickle.
"""

from __future__ import annotations

import os
from pathlib import Path

from minisd.errors import CheckpointError, quoted
from minisd.weights_loader.binary_file import BinaryFile
from minisd.weights_loader.limits import MAX_HEADER
from minisd.weights_loader.not_weights import SAFE_NAMES, folder_advice, is_text, what_it_is
from minisd.weights_loader.pickle_file import PickleFile
from minisd.weights_loader.quantised import quantised_view
from minisd.weights_loader.safetensors_file import SafetensorsFile
from minisd.weights_loader.sharded import MAX_INDEX_BYTES, ShardedSource
from minisd.weights_loader.source import TensorSource

_HEAD = 4096  # bytes looked at


def open_source(path: str | os.PathLike[str]) -> TensorSource:
    """Opens a checkpoint file or an index of shards; its `container` says which it turned out to be. Weights
    in few bits are seen as wide ones (`quantised.py`).

    Raises CheckpointError that names what the file is: an error page, a Git LFS pointer, another format, a
    folder, a device, damaged, missing, or not permitted.
    """
    source = _opened(Path(path))
    try:
        return quantised_view(source)
    except BaseException:
        source.close()
        raise


def _opened(path: Path) -> TensorSource:
    if os.path.isdir(path):
        raise CheckpointError(folder_advice(path))
    file = BinaryFile(path)
    try:
        name, size = file.name, file.size
        if size == 0:
            raise CheckpointError(f"{name} is empty (0 bytes); the download did not finish")
        head = file.read(0, min(_HEAD, size))
        document = file.read(0, size) if head.lstrip()[:1] == b"{" and size <= MAX_INDEX_BYTES else b""
    finally:
        file.close()
    if _is_safetensors(head, size):
        return SafetensorsFile(path)
    if head.startswith(b"PK\3\4") or (head.startswith(b"\x80") and head[1:2] <= b"\5"):
        _check_name_of_pickle(path, name, "zip checkpoint" if head.startswith(b"PK") else "pickle")
        return PickleFile(path)
    if document and b'"weight_map"' in document:
        return ShardedSource(path)
    foreign = what_it_is(head, document)
    if foreign is not None:
        raise CheckpointError(f"{name} is {foreign}")
    if path.suffix.lower() in SAFE_NAMES:
        return SafetensorsFile(path)  # it says what is wrong with the header
    raise CheckpointError(
        f"{name} is of no known format (it begins {quoted(head[:8])}); minisd reads safetensors and torch "
        "checkpoints"
    )


def _is_safetensors(head: bytes, size: int) -> bool:
    length = int.from_bytes(head[:8], "little")
    plausible = size >= 10 and length <= min(MAX_HEADER, size - 8)
    # '{' at byte 8 belongs to a text file only if its first eight characters are a length over 100 MB
    return plausible or (head[8:9] == b"{" and not is_text(head[:8]))


def _check_name_of_pickle(path: Path, name: str, kind: str) -> None:
    if path.suffix.lower() in SAFE_NAMES:
        raise CheckpointError(
            f"{name}: the content is a PyTorch {kind} though the name says {path.suffix}; if you trust its "
            "source, "
            "rename it to .ckpt (it is read as data, never executed)"
        )
