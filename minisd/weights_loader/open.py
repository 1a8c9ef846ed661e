"""Opens a checkpoint by what it is, never by what it is called, and names what it is when it is not one.

The first bytes decide. A name may be wrong in the harmless direction (`.ckpt` that holds safetensors); a
`.safetensors` that holds a pickle is refused, because whoever chose it believed it held no pickle.
"""

from __future__ import annotations

import codecs
import json
import os
import re
from pathlib import Path

from minisd.errors import CheckpointError, listed, quoted
from minisd.weights_loader.binary_file import BinaryFile, os_reason
from minisd.weights_loader.limits import MAX_HEADER
from minisd.weights_loader.pickle_file import PickleFile
from minisd.weights_loader.quantised import quantised_view
from minisd.weights_loader.safetensors_file import SafetensorsFile
from minisd.weights_loader.sharded import MAX_INDEX_BYTES, ShardedSource
from minisd.weights_loader.source import TensorSource

_HEAD = 4096  # bytes looked at
_SAFE_NAMES = (".safetensors", ".sft")
_FOREIGN: tuple[tuple[bytes, str], ...] = (  # first bytes; what it is and what to do
    (
        b"GGUF",
        "a GGUF file (quantised); get the model as safetensors or as a torch checkpoint",
    ),
    (b"\x1f\x8b", "a gzip archive; unpack it first"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive; unpack it first"),
    (b"Rar!\x1a\x07", "a RAR archive; unpack it first"),
    (b"\x28\xb5\x2f\xfd", "a Zstandard archive; unpack it first"),
    (b"\xfd7zXZ\x00", "an xz archive; unpack it first"),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file (Keras); convert it to safetensors"),
    (b"\x93NUMPY", "a NumPy array; convert it to safetensors"),
    (b"PK\x05\x06", "an empty zip archive; the file is damaged"),
    (b"\x89PNG\r\n\x1a\n", "a PNG picture, not weights"),
    (b"\xff\xd8\xff", "a JPEG picture, not weights"),
    (b"RIFF", "a RIFF file (a WebP picture?), not weights"),
)


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
        raise CheckpointError(_folder_advice(path))
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
    foreign = _foreign(head, document)
    if foreign is not None:
        raise CheckpointError(f"{name} is {foreign}")
    if path.suffix.lower() in _SAFE_NAMES:
        return SafetensorsFile(path)  # it says what is wrong with the header
    raise CheckpointError(
        f"{name} is of no known format (it begins {quoted(head[:8])}); minisd reads safetensors and torch "
        "checkpoints"
    )


def _is_safetensors(head: bytes, size: int) -> bool:
    length = int.from_bytes(head[:8], "little")
    plausible = size >= 10 and length <= min(MAX_HEADER, size - 8)
    # '{' at byte 8 belongs to a text file only if its first eight characters are a length over 100 MB
    return plausible or (head[8:9] == b"{" and not _is_text(head[:8]))


def _check_name_of_pickle(path: Path, name: str, kind: str) -> None:
    if path.suffix.lower() in _SAFE_NAMES:
        raise CheckpointError(
            f"{name}: the content is a PyTorch {kind} though the name says {path.suffix}; if you trust its "
            "source, "
            "rename it to .ckpt (it is read as data, never executed)"
        )


def _foreign(head: bytes, document: bytes) -> str | None:
    """What a file that is no checkpoint is, and what to do; None if that cannot be told."""
    for mark, what in _FOREIGN:
        if head.startswith(mark):
            return what
    if head.startswith(b"version https://git-lfs"):
        return _lfs_pointer(head)
    if head[257:262] == b"ustar":
        return "a tar archive (checkpoints of torch 0.1 are); unpack it, or convert it on an isolated machine"
    if re.match(rb"\x08[\x01-\x20][\x12\x1a\x22\x2a\x32\x3a\x42]", head):
        return "an ONNX model; minisd needs the weights it was exported from"
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    if text[:1] == b"<":
        return _markup(text)
    if text[:1] in (b"{", b"["):
        return _json_page(document)
    if _is_text(head):
        begin = quoted(head[:60].decode("utf-8", "replace"), 80)
        return f"text, not weights (a failed download? it begins {begin})"
    return None


def _lfs_pointer(head: bytes) -> str:
    oid = re.search(rb"oid sha256:([0-9a-f]{64})", head)
    size = re.search(rb"size (\d{1,15})\b", head)
    what = f"a {int(size[1]) / 1e9:,.2f} GB file" if size else "a file"
    shown = f" (oid {oid[1].decode()[:12]}...)" if oid else ""
    return f"a git-lfs pointer to {what}{shown}, not the file itself; run git lfs pull"


def _markup(text: bytes) -> str:
    lowered = text[:200].lower()
    kind = "an HTML page" if b"<html" in lowered or b"<!doctype html" in lowered else "an XML document"
    title = re.search(rb"<(title|message)[^>]{0,200}>([^<]{1,400})", text, re.IGNORECASE)
    shown = f": {quoted(' '.join(title[2].decode('utf-8', 'replace').split()))}" if title else ""
    return f"{kind}, not weights (a failed download{shown}); download it again"


def _json_page(document: bytes) -> str:
    """What a JSON text says of itself; an error message if it has one."""
    try:
        value = json.loads(document)
    except (ValueError, RecursionError):
        return "JSON or other text, not weights; download it again"
    message = None
    if isinstance(value, dict):
        message = next((value[key] for key in ("error", "message", "detail") if key in value), None)
        if "_class_name" in value or "_diffusers_version" in value:
            return "a diffusers configuration, not weights; give the folder it lies in"
    shown = f" (a failed download: {quoted(message)})" if message is not None else ""
    return f"a JSON text, not weights{shown}; download it again"


def _is_text(raw: bytes) -> bool:
    try:
        text = codecs.getincrementaldecoder("utf-8")().decode(raw)  # the last character may be cut
    except UnicodeDecodeError:
        return False
    return all(char in "\t\n\r" or (char >= " " and char != "\x7f") for char in text)


def _folder_advice(path: Path) -> str:
    name = quoted(path.name)[1:-1]
    try:
        inside = sorted(entry.name for entry in path.iterdir())
    except OSError as error:
        return f"{name} is a directory that cannot be listed: {os_reason(error)}"
    if "model_index.json" in inside:
        return (
            f"{name} is a diffusers folder, not one file; load it as a folder, or give one component's file"
        )
    files = [n for n in inside if n.endswith((*_SAFE_NAMES, ".ckpt", ".pt", ".pth", ".bin"))]
    hint = f"it holds {listed(files, 3)}: give one of these" if files else "it holds no checkpoint file"
    return f"{name} is a directory; expected a checkpoint file; {hint}"
