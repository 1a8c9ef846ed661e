"""Zip archives that must be refused: every field that a zip says twice, or that a torch checkpoint never has,
lied about.

A case is (name, bytes, pattern of the message).
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

from tests.weights_loader.malformed import Case
from tests.weights_loader.malformed_pickle import FOUR, GOOD_PICKLE


@dataclass
class Rec:
    """A record and the lies told about it; None means the truth."""

    name: str
    data: bytes
    crc: int | None = None
    deflate: bool = False
    flags: int = 0
    local_name: str | None = None
    local_size: int | None = None
    attributes: int = 0
    made_by: int = 20
    descriptor: bytes | None = None
    extra: bytes = b""
    at: int | None = None
    size: int | None = None


def archive(
    records: Sequence[Rec],
    *,
    before: bytes = b"",
    gap: bytes = b"",
    count: int | None = None,
) -> bytes:
    out, table = io.BytesIO(), io.BytesIO()
    out.write(before)
    for r in records:
        at = out.tell() - len(before) if r.at is None else r.at
        body = zlib.compress(r.data, 9, -15) if r.deflate else r.data
        method = 8 if r.deflate else 0
        crc = zlib.crc32(r.data) if r.crc is None else r.crc
        size = len(r.data) if r.size is None else r.size
        packed = len(body) if r.size is None else r.size
        local, name = (r.local_name or r.name).encode(), r.name.encode()
        flags = r.flags | (8 if r.descriptor is not None else 0)
        declared = (
            (0, 0, 0)
            if r.descriptor is not None
            else (crc, len(body) if r.local_size is None else r.local_size, len(r.data))
        )
        out.write(
            struct.pack("<4s5H3L2H", b"PK\3\4", 20, flags, method, 0, 0, *declared, len(local), 0) + local
        )
        out.write(body + (r.descriptor or b"") + gap)
        head = (
            b"PK\1\2",
            r.made_by,
            20,
            flags,
            method,
            0,
            0,
            crc,
            packed,
            size,
            len(name),
            len(r.extra),
            0,
            0,
            0,
        )
        table.write(struct.pack("<4s6H3L5H2L", *head, r.attributes, at) + name + r.extra)
    start = out.tell() - len(before)
    number_of = len(records) if count is None else count
    out.write(table.getvalue())
    out.write(struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, number_of, number_of, len(table.getvalue()), start, 0))
    return out.getvalue()


def checkpoint(program: bytes = GOOD_PICKLE, *more: Rec, data: bytes = FOUR) -> bytes:
    """A torch zip of one storage of four floats."""
    records = [
        Rec("x/data.pkl", program),
        Rec("x/byteorder", b"little"),
        Rec("x/data/0", data),
        Rec("x/version", b"3\n"),
    ]
    return archive([*records, *more])


def _with(**lies: object) -> bytes:
    return archive([Rec("x/data.pkl", GOOD_PICKLE), Rec("x/data/0", FOUR, **lies)])  # pyright: ignore[reportArgumentType]


def flipped(raw_bytes: bytes, find: bytes) -> bytes:
    """One bit of the first occurrence of `find` changed."""
    at = raw_bytes.index(find)
    return raw_bytes[:at] + bytes([raw_bytes[at] ^ 1]) + raw_bytes[at + 1 :]


_PKL = Rec("x/data.pkl", GOOD_PICKLE)
_ZIP64_LIE = struct.pack("<2HQ", 1, 8, 2**40)

ZIP_CASES: list[Case] = [
    (
        "L40-bomb",
        archive([_PKL, Rec("x/data/0", bytes(2**20), deflate=True)]),
        r"'x/data/0' is deflate-compressed \(ratio \d{3,4}:1\)",
    ),
    (
        "L40-pickle-deflated",
        archive([Rec("x/data.pkl", GOOD_PICKLE, deflate=True)]),
        r"'x/data.pkl' is deflate-compressed",
    ),
    ("L41-crc", _with(crc=1), r"'x/data/0' do not match their CRC-32"),
    ("L41-bit-flip", flipped(checkpoint(), FOUR), r"'x/data/0' do not match their CRC-32"),
    (
        "L41-crc-pickle",
        archive([Rec("x/data.pkl", GOOD_PICKLE, crc=1)]),
        r"'x/data.pkl' do not match their CRC-32",
    ),
    ("L41-truncated", checkpoint()[:-30], r"table of records is not at the end; truncated"),
    ("L41-truncated-short", checkpoint()[:15], r"it is 15 bytes; truncated"),
    ("L41-local-name", _with(local_name="x/data/1"), r"two headers of the record 'x/data/0' disagree"),
    ("L41-local-size", _with(local_size=15), r"two headers of the record 'x/data/0' disagree"),
    ("L41-encrypted", _with(flags=1), r"'x/data/0' is encrypted"),
    ("L41-duplicate", checkpoint(GOOD_PICKLE, Rec("x/data/0", FOUR)), r"record 'x/data/0' appears twice"),
    ("L41-two-pickles", checkpoint(GOOD_PICKLE, Rec("y/data.pkl", GOOD_PICKLE)), r"2 records named data.pkl"),
    ("L41-no-pickle", archive([Rec("x/data/0", FOUR)]), r"0 records named data.pkl"),
    ("L41-prefix", archive([_PKL], before=b"\x80\x02}." + bytes(12)), r"bytes put before it|plain pickle"),
    ("L41-prefix-zip", archive([_PKL], before=b"PK\3\4" + bytes(12)), r"bytes put before it"),
    ("L41-appended", checkpoint() + b"tail", r"truncated or with bytes appended"),
    ("L41-comment", archive([_PKL])[:-2] + b"\4\0note", r"truncated or with bytes appended"),
    ("L41-gap", archive([_PKL, Rec("x/data/0", FOUR)], gap=b"hidden"), r"bytes that belong to no record"),
    ("L41-gap-at-end", archive([_PKL], gap=b"hidden"), r"belong to no record"),
    ("L41-dotdot", checkpoint(GOOD_PICKLE, Rec("x/../../etc", b"")), r"record name 'x/../../etc' is unsafe"),
    ("L41-absolute", checkpoint(GOOD_PICKLE, Rec("/etc/x", b"")), r"record name '/etc/x' is unsafe"),
    ("L41-backslash", checkpoint(GOOD_PICKLE, Rec("x\\y", b"")), r"is unsafe"),
    ("L41-drive", checkpoint(GOOD_PICKLE, Rec("C:/y", b"")), r"is unsafe"),
    ("L41-control", checkpoint(GOOD_PICKLE, Rec("x\x1b", b"")), r"is unsafe"),
    (
        "L41-symlink",
        checkpoint(GOOD_PICKLE, Rec("x/l", b"/etc/passwd", attributes=0xA1FF << 16, made_by=3 << 8)),
        r"symbolic link",
    ),
    ("L41-marked-as-folder", _with(attributes=0x10), r"'x/data/0' is marked as a folder, yet has data"),
    (
        "L41-zip64-lie",
        _with(size=0xFFFFFFFF, extra=struct.pack("<2H2Q", 1, 16, 2**40, 2**40)),
        r"disagree|runs past",
    ),
    ("L41-zip64-missing", _with(size=0xFFFFFFFF), r"zip64 field that does not fit"),
    ("L41-zip64-unasked", _with(extra=_ZIP64_LIE), r"zip64 field that does not fit"),
    ("L41-extra-cut", _with(extra=b"\1\0\xff\0"), r"malformed extra field"),
    ("L41-size-lie", _with(size=2**30, local_size=2**30), r"disagree|runs past"),
    ("L41-overlap", archive([_PKL, Rec("x/data/0", FOUR, at=0)]), r"disagree|overlap"),
    ("L41-count", archive([_PKL], count=2), r"damaged at row 1 of 2"),
    ("L41-count-less", archive([_PKL, Rec("x/data/0", FOUR)], count=1), r"after the last row"),
    ("L41-descriptor", _with(descriptor=b"PK\7\10" + bytes(12)), r"descriptor after 'x/data/0' disagrees"),
    (
        "L43-big-endian",
        archive([_PKL, Rec("x/byteorder", b"big"), Rec("x/data/0", FOUR)]),
        r"big-endian machine",
    ),
    ("torchscript", checkpoint(GOOD_PICKLE, Rec("x/constants.pkl", b"\x80\x02).")), r"TorchScript program"),
    ("npz", archive([Rec("a.npy", b"\x93NUMPY")]), r"NumPy .npz archive with 0 records"),
]
