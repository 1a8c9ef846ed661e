"""The zip container of torch checkpoints: uncompressed records at known places, and nothing else in the file.

Format: PKWARE APPNOTE 6.3 (sections 4.3 to 4.5), as written by PyTorch's miniz (zip64 end records always,
data descriptors). A zip can be read in several ways, and scanners and loaders have been played against each
other with that; here it has one reading or is refused: it starts at byte 0, ends at the last byte, both
tables agree, records tile the file.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from minisd.errors import CheckpointError, quoted
from minisd.weights_loader.binary_file import BinaryFile
from minisd.weights_loader.limits import MAX_NAME

MAX_RECORDS = 60_000  # a training checkpoint holds weights, their average and two optimizer moments
_ENCRYPTED, _DESCRIPTOR = 0x2041, 0x8  # flag bits: encryption (any of three), sizes follow the data
_END, _END64, _LOCATOR = struct.Struct("<4s4H2LH"), struct.Struct("<4sQ2H2L4Q"), struct.Struct("<4sLQL")
_CENTRAL, _LOCAL = struct.Struct("<4s6H3L5H2L"), struct.Struct("<4s5H3L2H")


@dataclass(frozen=True, slots=True)
class Record:
    """A stored file of the archive: `nbytes` bytes at byte `at` of the whole file."""

    name: str
    at: int
    nbytes: int
    crc: int


@dataclass(frozen=True, slots=True)
class _Entry:
    """A row of the central directory."""

    name: bytes
    flags: int
    crc: int
    nbytes: int
    local: int


def read_records(file: BinaryFile) -> dict[str, Record]:
    """All records by name, from the central directory, each held against its local header. No record data is
    read.

    Raises CheckpointError: compressed, encrypted, duplicate, overlapping or linked records, unsafe names,
    bytes before, between or after, tables that disagree.
    """
    at, size, count = _central_directory(file)
    entries = _entries(file.read(at, size), count, file.name)
    records: dict[str, Record] = {}
    reached = 0
    for entry in sorted(entries, key=lambda e: e.local):
        name = _checked_name(entry.name, file.name)
        if name in records:
            raise CheckpointError(f"{file.name}: the record {quoted(name)} appears twice; refusing")
        if entry.local != reached:
            raise CheckpointError(
                f"{file.name}: the record {quoted(name)} is at byte {entry.local:,}, the one before ends at "
                f"{reached:,}; "
                "refusing bytes that belong to no record, and records that overlap"
            )
        start = _data_start(file, entry, name, at)
        if start + entry.nbytes > at:
            raise CheckpointError(
                f"{file.name}: the record {quoted(name)} runs past byte {at:,}, where the records end"
            )
        records[name] = Record(name, start, entry.nbytes, entry.crc)
        reached = _record_end(file, entry, start, at)
    if reached != at:
        raise CheckpointError(f"{file.name}: bytes {reached:,}-{at:,} belong to no record; refusing")
    return records


def _central_directory(file: BinaryFile) -> tuple[int, int, int]:
    """Where the table of records is, its bytes, its rows."""
    damaged = f"{file.name} is no whole zip archive: "
    if file.size < _END.size:
        raise CheckpointError(f"{damaged}it is {file.size} bytes; truncated, download it again")
    limit = file.size - _END.size
    mark, disk, disk_start, here, count, size, at, comment = _END.unpack(file.read(limit, _END.size))
    if mark != b"PK\5\6" or comment:
        raise CheckpointError(
            f"{damaged}its table of records is not at the end; truncated or with bytes appended"
        )
    if disk or disk_start or here != count:
        raise CheckpointError(f"{damaged}it is one part of several")
    locator = limit - _LOCATOR.size
    if locator >= _END64.size and file.read(locator, 4) == b"PK\6\7":
        _, disk, end64, disks = _LOCATOR.unpack(file.read(locator, _LOCATOR.size))
        if disk or disks > 1 or end64 != locator - _END64.size:
            raise CheckpointError(
                f"{damaged}its zip64 locator names byte {end64:,}, not {locator - _END64.size:,}"
            )
        fields = _END64.unpack(file.read(end64, _END64.size))
        mark, length, _, _, disk, disk_start, here64, count64, size64, at64 = fields
        if mark != b"PK\6\6" or length != _END64.size - 12 or disk or disk_start or here64 != count64:
            raise CheckpointError(f"{damaged}its zip64 end record is malformed")
        for short, full, mask in (
            (count, count64, 0xFFFF),
            (size, size64, 0xFFFFFFFF),
            (at, at64, 0xFFFFFFFF),
        ):
            if short not in (full, mask):
                raise CheckpointError(f"{damaged}its end records disagree: {short:,} and {full:,}")
        count, size, at, limit = count64, size64, at64, end64
    if at + size != limit:
        raise CheckpointError(
            f"{damaged}its table of records should end at byte {limit:,}, not {at + size:,} (bytes put "
            "before it?)"
        )
    if count > MAX_RECORDS:
        raise CheckpointError(f"{file.name}: {count:,} records; the limit is {MAX_RECORDS:,}")
    if size > count * (_CENTRAL.size + MAX_NAME + 1024):
        raise CheckpointError(f"{damaged}{size:,} bytes of table for {count:,} records")
    return at, size, count


def _entries(table: bytes, count: int, where: str) -> list[_Entry]:
    entries: list[_Entry] = []
    at = 0
    for _ in range(count):
        if len(table) - at < _CENTRAL.size or table[at : at + 4] != b"PK\1\2":
            raise CheckpointError(
                f"{where}: the table of records is damaged at row {len(entries)} of {count}"
            )
        row = _CENTRAL.unpack_from(table, at)
        (
            _,
            made_by,
            _,
            flags,
            method,
            _,
            _,
            crc,
            packed,
            nbytes,
            n_name,
            n_extra,
            n_comment,
            disk,
            _,
            attributes,
            local,
        ) = row
        at += _CENTRAL.size
        name, extra = table[at : at + n_name], table[at + n_name : at + n_name + n_extra]
        at += n_name + n_extra + n_comment
        if at > len(table):
            raise CheckpointError(f"{where}: the table of records ends inside row {len(entries)}")
        shown = quoted(name.decode("utf-8", "replace"))
        nbytes, packed, local = _zip64_values(extra, [nbytes, packed, local], f"{where}: {shown}")
        if flags & _ENCRYPTED:
            raise CheckpointError(f"{where}: the record {shown} is encrypted; refusing")
        if method != 0:
            ratio = f"ratio {nbytes // max(packed, 1)}:1"
            kind = "deflate-compressed" if method == 8 else f"compressed by method {method}"
            raise CheckpointError(
                f"{where}: {shown} is {kind} ({ratio}); records of a checkpoint must be stored uncompressed"
            )
        if packed != nbytes or disk:
            raise CheckpointError(
                f"{where}: the record {shown} is stored, yet declares {packed:,} bytes for {nbytes:,}"
            )
        if made_by >> 8 == 3 and (attributes >> 16) & 0xF000 == 0xA000:
            raise CheckpointError(f"{where}: the record {shown} is a symbolic link; refusing")
        if attributes & 0x10 and nbytes:  # DOS's mark; torch 2.13 gives such a record's tensor foreign memory
            raise CheckpointError(
                f"{where}: the record {shown} is marked as a folder, yet has data; refusing"
            )
        entries.append(_Entry(name, flags, crc, nbytes, local))
    if at != len(table):
        raise CheckpointError(
            f"{where}: {len(table) - at:,} bytes after the last row of the table of records"
        )
    return entries


def _zip64_values(extra: bytes, values: list[int], shown: str) -> list[int]:
    """`values` with those that are 0xFFFFFFFF replaced from the zip64 field (id 1), which must hold exactly
    them.
    """
    wanted = [i for i, value in enumerate(values) if value == 0xFFFFFFFF]
    at, field = 0, None
    while at + 4 <= len(extra):
        kind, length = struct.unpack_from("<2H", extra, at)
        if kind == 1 and field is not None:
            raise CheckpointError(f"{shown} has two zip64 fields; refusing")
        if kind == 1:
            field = extra[at + 4 : at + 4 + length]
        at += 4 + length
    if at != len(extra):
        raise CheckpointError(f"{shown} has a malformed extra field")
    if (field is None and wanted) or (field is not None and len(field) != 8 * len(wanted)):
        raise CheckpointError(f"{shown} has a zip64 field that does not fit its sizes; refusing")
    for i, at in zip(wanted, range(0, 8 * len(wanted), 8), strict=True):
        values[i] = int.from_bytes((field or b"")[at : at + 8], "little")
    return values


def _data_start(file: BinaryFile, entry: _Entry, name: str, limit: int) -> int:
    """Where the data begin, from a local header that agrees with the table."""
    if entry.local + _LOCAL.size + len(entry.name) > limit:
        raise CheckpointError(f"{file.name}: the record {quoted(name)} lies outside the file")
    raw = file.read(entry.local, _LOCAL.size + len(entry.name))
    mark, _, flags, method, _, _, crc, packed, nbytes, n_name, n_extra = _LOCAL.unpack_from(raw)
    agrees = mark == b"PK\3\4" and flags == entry.flags and method == 0 and raw[_LOCAL.size :] == entry.name
    later = bool(flags & _DESCRIPTOR) and (crc, packed, nbytes) == (0, 0, 0)
    same = crc == entry.crc and packed == nbytes and nbytes in (entry.nbytes, 0xFFFFFFFF)
    if not agrees or n_name != len(entry.name) or not (later or same):
        raise CheckpointError(f"{file.name}: the two headers of the record {quoted(name)} disagree; refusing")
    return entry.local + _LOCAL.size + n_name + n_extra


def _record_end(file: BinaryFile, entry: _Entry, start: int, limit: int) -> int:
    """Where the record ends: after its data, or after the descriptor that repeats checksum and sizes."""
    end = start + entry.nbytes
    if not entry.flags & _DESCRIPTOR:
        return end
    tail = file.read(end, min(24, limit - end))
    for sizes in ("<2L", "<2Q"):
        if entry.nbytes > 0xFFFFFFFF and sizes == "<2L":
            continue
        for mark in (b"PK\7\10", b""):
            expected = mark + struct.pack("<L", entry.crc) + struct.pack(sizes, entry.nbytes, entry.nbytes)
            if tail.startswith(expected) and _next_mark(file, end + len(expected), limit):
                return end + len(expected)
    raise CheckpointError(
        f"{file.name}: the descriptor after {quoted(entry.name.decode('utf-8', 'replace'))} disagrees; "
        "refusing"
    )


def _next_mark(file: BinaryFile, at: int, limit: int) -> bool:
    """A header of the next record or of the table: tells the forms of a descriptor apart."""
    return file.read(at, 4) in (b"PK\3\4", b"PK\1\2") if at + 4 <= file.size and at <= limit else False


def _checked_name(raw: bytes, where: str) -> str:
    try:
        name = raw.decode("utf-8")
    except UnicodeDecodeError:
        raise CheckpointError(f"{where}: a record's name is not UTF-8: {quoted(raw)}") from None
    parts = name.split("/")
    bad = (
        not name or len(raw) > MAX_NAME or "\\" in name or ":" in parts[0] or ".." in parts or parts[0] == ""
    )
    if bad or not name.isprintable():
        raise CheckpointError(
            f"{where}: the record name {quoted(name)} is unsafe or over {MAX_NAME} bytes; refusing"
        )
    return name
