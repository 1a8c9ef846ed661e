"""The header of a safetensors file: parsed entry by entry, every declaration checked before a byte of data is
read.

Format: github.com/huggingface/safetensors README (u64 length, JSON object, data). Stricter than its reader on
purpose: duplicate names, unknown fields, control characters and more than 20,000 tensors are refused. A
general JSON parser would turn a hostile 100 MB header into gigabytes of objects and lose positions; here each
entry is bounded, then parsed. Not checked: the values. NaN is a matter of the model, not of the container.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass

from minisd.errors import CheckpointError, listed, quoted
from minisd.weights_loader.limits import MAX_HEADER, check_count, check_name, checked_nbytes, dtype_named
from minisd.weights_loader.source import TensorInfo

MAX_METADATA = 20_000  # entries; released files have a few dozen
_SPACE = re.compile(r"[ \t\n\r]*")
_ENTRY = re.compile(
    r'\{(?:[^{}"]++|"[^"\\]{0,64}"){0,200}+\}'
)  # flat, no escapes: all that a tensor entry can be
_ENTRY_SIZE = 4096  # characters
_FIELDS = ("dtype", "shape", "data_offsets")
_DECODER = json.JSONDecoder()


@dataclass(frozen=True, slots=True)
class Header:
    """Tensors in data order, where the data of each begins in the file, and the free-form metadata."""

    tensors: dict[str, TensorInfo]
    positions: dict[str, int]  # bytes from the start of the file
    metadata: dict[str, str]


def header_length(start: bytes, file_size: int, where: str) -> int:
    """The header's length from the first 8 bytes of a file, or CheckpointError (too short, over 100 MB, over
    the file).
    """
    if file_size == 0:
        raise CheckpointError(f"{where} is empty (0 bytes); the download did not finish")
    if file_size < 10:
        raise CheckpointError(f"{where} is {file_size} bytes; a safetensors file is at least 10: truncated")
    length = int.from_bytes(start[:8], "little")
    if length > MAX_HEADER:
        raise CheckpointError(
            f"{where}: header length {length:,} exceeds the 100 MB limit; this is not a safetensors file, "
            "or damaged"
        )
    if length > file_size - 8:
        raise CheckpointError(
            f"{where}: header says {length:,} bytes but the file has {file_size:,}; truncated or not "
            "safetensors"
        )
    return length


def parse_header(raw: bytes, file_size: int, where: str) -> Header:
    """Checks the header `raw` (without the 8 length bytes) of a file of `file_size` bytes; `where` opens
    every message.

    Raises CheckpointError; it says which tensor and which byte.
    """
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{where}: the header is not UTF-8 at byte {8 + error.start}") from None
    if text.startswith("\ufeff"):
        raise CheckpointError(f"{where}: the header begins with a byte order mark; expected '{{' at byte 8")
    cursor = _Cursor(text, where)
    metadata: dict[str, str] = {}
    tensors: dict[str, TensorInfo] = {}
    spans: dict[str, tuple[int, int]] = {}
    for name in cursor.members():
        if name == "__metadata__":
            for key in cursor.members(name):
                if len(metadata) == MAX_METADATA:
                    raise CheckpointError(f"{where}: __metadata__ has over {MAX_METADATA:,} entries")
                metadata[key] = cursor.string(f"__metadata__ {quoted(key)} must be a string")
            continue
        check_count(len(tensors) + 1, where)
        check_name(name, where)
        tensors[name], spans[name] = _tensor(name, cursor.entry(name), where)
    cursor.end()
    order = sorted(spans, key=spans.__getitem__)
    data = 8 + len(raw)
    _check_regions([(name, *spans[name]) for name in order], file_size - data, file_size, where)
    return Header({n: tensors[n] for n in order}, {n: data + spans[n][0] for n in order}, metadata)


def _tensor(name: str, text: str, where: str) -> tuple[TensorInfo, tuple[int, int]]:
    """The declaration of one tensor and its begin and end in the data section."""
    try:
        pairs = json.loads(text, object_pairs_hook=list, parse_int=_count)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{where}: the entry of {quoted(name)} is not JSON: {quoted(error)}") from None
    fields = dict(pairs)
    if sorted(key for key, _ in pairs) != sorted(_FIELDS):
        raise CheckpointError(
            f"{where}: {quoted(name)} has the fields {listed([key for key, _ in pairs])}; "
            f"expected {', '.join(_FIELDS)}, each once"
        )
    dtype = dtype_named(fields["dtype"], name, where)
    shape, offsets = fields["shape"], fields["data_offsets"]
    if not isinstance(shape, list):
        raise CheckpointError(
            f"{where}: {quoted(name)}.shape is {quoted(shape)}; expected a list of non-negative integers"
        )
    nbytes = checked_nbytes(name, shape, dtype, where)
    if not isinstance(offsets, list) or len(offsets) != 2 or any(type(o) is not int for o in offsets):
        raise CheckpointError(
            f"{where}: {quoted(name)}.data_offsets must be two non-negative integers; got {quoted(offsets)}"
        )
    begin, end = offsets
    if end < begin:
        raise CheckpointError(
            f"{where}: {quoted(name)}.data_offsets must not decrease; got {quoted(offsets)}"
        )
    if end - begin != nbytes:
        raise CheckpointError(
            f"{where}: {quoted(name)} {fields['dtype']} {shape} needs {nbytes:,} bytes, has {end - begin:,}"
        )
    return TensorInfo(name, dtype, tuple(shape)), (begin, end)


def _count(digits: str) -> int | str:
    return (
        digits if digits.startswith("-") else int(digits)
    )  # "-0" too: no count, and other readers refuse it


def _check_regions(regions: list[tuple[str, int, int]], data_size: int, file_size: int, where: str) -> None:
    """Sorted regions must tile the data section: no overlap, no hole, nothing after the last (which stops
    polyglots).
    """
    reached, before = 0, ""
    for name, begin, end in regions:
        if begin < reached:
            raise CheckpointError(
                f"{where}: {quoted(name)} overlaps {quoted(before)} at byte {begin:,} of the data; refusing"
            )
        if begin > reached:
            raise CheckpointError(
                f"{where}: bytes {reached:,}-{begin:,} of the data belong to no tensor; refusing"
            )
        if end > data_size:
            raise CheckpointError(
                f"{where}: tensor {quoted(name)} needs bytes {begin:,}-{end:,} of the data, which ends at "
                f"{data_size:,}: "
                f"truncated ({end - data_size:,} bytes or more missing after {file_size:,}); download it "
                "again"
            )
        reached, before = end, name
    if reached != data_size:
        raise CheckpointError(
            f"{where}: {data_size - reached:,} bytes after the last tensor; refusing (the format forbids "
            "holes)"
        )


class _Cursor:
    """Walks the one JSON object of a header: string keys, and values that are strings or flat entries."""

    def __init__(self, text: str, where: str) -> None:
        self.text, self.where = text, where
        self.at = 0

    def members(self, of: str = "") -> Iterator[str]:
        """Each key of the object at the cursor; the caller consumes the value before it asks for the next."""
        here = quoted(of) if of else "the header"
        if not self._take("{"):
            raise self._error(f"{here} is not a JSON object")
        seen: set[str] = set()
        if self._take("}"):
            return
        while True:
            key = self.string("expected a name in double quotes")
            if key in seen:
                raise CheckpointError(f"{self.where}: {quoted(key)} appears twice in {here}")
            seen.add(key)
            if not self._take(":"):
                raise self._error(f"expected ':' after {quoted(key)}")
            yield key
            if self._take("}"):
                return
            if not self._take(","):
                raise self._error(f"expected ',' or '}}' after {quoted(key)}")

    def string(self, expected: str) -> str:
        """The JSON string at the cursor, or an error that says `expected`."""
        self._skip()
        if self.text[self.at : self.at + 1] != '"':
            raise self._error(expected)
        try:
            value, self.at = _DECODER.raw_decode(self.text, self.at)
            value.encode()
        except ValueError as error:  # JSONDecodeError, or a lone surrogate
            raise self._error(f"bad string: {quoted(error)}") from None
        return value

    def entry(self, name: str) -> str:
        """The text of the flat object at the cursor."""
        self._skip()
        match = _ENTRY.match(self.text, self.at)
        if match is None or match.end() - match.start() > _ENTRY_SIZE:
            raise self._error(f"{quoted(name)} is not described by an object of {', '.join(_FIELDS)}")
        self.at = match.end()
        return match.group()

    def end(self) -> None:
        self._skip()
        if self.at != len(self.text):
            raise self._error("text after the header's JSON object")

    def _skip(self) -> None:
        match = _SPACE.match(self.text, self.at)
        assert match is not None
        self.at = match.end()

    def _take(self, char: str) -> bool:
        self._skip()
        found = self.text[self.at : self.at + 1] == char
        self.at += found
        return found

    def _error(self, message: str) -> CheckpointError:
        byte = 8 + len(self.text[: self.at].encode())
        return CheckpointError(
            f"{self.where}: {message} (byte {byte:,}); the file is damaged or no safetensors file"
        )
