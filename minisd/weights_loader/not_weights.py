"""What a file that is no checkpoint is, and what to do: another format, an error page, a pointer, a folder.

Told by the first bytes. Each answer goes on after "NAME is ..." in an error.
"""

from __future__ import annotations

import codecs
import json
import re
from pathlib import Path

from minisd.errors import listed, quoted
from minisd.weights_loader.binary_file import os_reason

SAFE_NAMES = (".safetensors", ".sft")
FOREIGN: tuple[tuple[bytes, str], ...] = (  # first bytes; what it is and what to do
    (b"GGUF", "a GGUF file (quantised); get the model as safetensors or as a torch checkpoint"),
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


def what_it_is(head: bytes, document: bytes) -> str | None:
    """What a file that is no checkpoint is, and what to do; None if that cannot be told."""
    for mark, what in FOREIGN:
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
    if is_text(head):
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


def is_text(raw: bytes) -> bool:
    try:
        text = codecs.getincrementaldecoder("utf-8")().decode(raw)  # the last character may be cut
    except UnicodeDecodeError:
        return False
    return all(char in "\t\n\r" or (char >= " " and char != "\x7f") for char in text)


def folder_advice(path: Path) -> str:
    name = quoted(path.name)[1:-1]
    try:
        inside = sorted(entry.name for entry in path.iterdir())
    except OSError as error:
        return f"{name} is a directory that cannot be listed: {os_reason(error)}"
    if "model_index.json" in inside:
        return (
            f"{name} is a diffusers folder, not one file; load it as a folder, or give one component's file"
        )
    files = [n for n in inside if n.endswith((*SAFE_NAMES, ".ckpt", ".pt", ".pth", ".bin"))]
    hint = f"it holds {listed(files, 3)}: give one of these" if files else "it holds no checkpoint file"
    return f"{name} is a directory; expected a checkpoint file; {hint}"
