"""Files that must be refused, made byte by byte: safetensors, pickles and zips, each with the sentence it
earns.

A case is (name, bytes, pattern of the message). Numbers L.. are those of the fault list that the loader was
built against.
"""

from __future__ import annotations

import json
from pathlib import Path

Case = tuple[str, bytes, str]


def safetensors(header: object, data: bytes = b"", length: int | None = None) -> bytes:
    """A file with this header: JSON text, bytes, or an object to be dumped; `length` lies about its size."""
    raw = (
        header
        if isinstance(header, bytes)
        else (header if isinstance(header, str) else json.dumps(header)).encode()
    )
    return (len(raw) if length is None else length).to_bytes(8, "little") + raw + data


def entry(dtype: object = "F32", shape: object = (2, 2), offsets: object = (0, 16)) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def _one(**fields: object) -> bytes:
    return safetensors({"a": entry(**fields)}, bytes(16))


GOOD = safetensors({"a": entry(), "b": entry("F16", [3], [16, 22])}, bytes(range(22)))

SAFETENSORS_CASES: list[Case] = [
    ("L01-empty", b"", r"empty \(0 bytes\)"),
    ("L02-7-bytes", bytes(7), r"is 7 bytes; a safetensors file is at least 10"),
    (
        "L03-header-over-file",
        safetensors("{}", bytes(74), 1_000_000),
        r"header says 1,000,000 bytes but the file has 84",
    ),
    ("L04-header-100MB", safetensors("{}", b"", 100_000_001), r"length 100,000,001 exceeds the 100 MB limit"),
    (
        "L04-header-2^64",
        safetensors("{}", b"", 2**64 - 1),
        r"18,446,744,073,709,551,615 exceeds the 100 MB limit",
    ),
    ("L04-header-2^63", safetensors("{}", b"", 2**63), r"9,223,372,036,854,775,808 exceeds"),
    ("L09-not-utf8", safetensors(b'{"\xff\xfe": 1}'), r"not UTF-8 at byte 10"),
    ("L09-utf8-surrogate-bytes", safetensors(b'{"\xed\xa0\x80": 1}'), r"not UTF-8 at byte 10"),
    ("L09-bom", safetensors(b"\xef\xbb\xbf{}"), r"byte order mark"),
    ("L10-not-json", safetensors("hello world"), r"header is not a JSON object \(byte 8\)"),
    ("L10-list", safetensors("[1, 2]  "), r"header is not a JSON object"),
    ("L10-number", safetensors("12345678"), r"header is not a JSON object"),
    ("L10-unfinished", safetensors('{"a": '), r"'a' is not described by an object"),
    ("L10-unfinished-string", safetensors('{"a'), r"bad string"),
    ("L10-no-colon", safetensors('{"a" 1}'), r"expected ':' after 'a'"),
    ("L10-no-comma", safetensors('{"__metadata__":{} "a":{}}'), r"expected ',' or '}'"),
    ("L10-trailing-comma", safetensors('{"__metadata__":{},}'), r"expected a name in double quotes"),
    ("L10-nested", safetensors('{"a":' + "[" * 100_000), r"'a' is not described by an object"),
    (
        "L10-nested-shape",
        safetensors('{"a":{"shape":' + "[" * 3000 + "]" * 3000 + "}}"),
        r"entry of 'a' is not|described",
    ),
    ("L10-nested-top", safetensors("[" * 100_000), r"header is not a JSON object"),
    ("L10-second-object", safetensors("{}{}"), r"text after the header's JSON object"),
    ("L10-nul-padding", safetensors(b"{}\0\0\0\0\0\0"), r"text after the header's JSON object"),
    ("L10-entry-is-number", safetensors('{"a": 3}'), r"'a' is not described by an object of dtype, shape"),
    ("L10-entry-huge", safetensors('{"a": {"dtype":' + " " * 5000 + '"F32"}}'), r"'a' is not described"),
    ("L10-entry-not-json", safetensors('{"a": {dtype}}'), r"the entry of 'a' is not JSON"),
    ("L10-surrogate", safetensors('{"\\ud800": 1}'), r"bad string"),
    (
        "L11-truncated",
        safetensors({"a": entry()}, bytes(15)),
        r"'a' needs bytes 0-16 .* ends at 15: truncated \(1 bytes",
    ),
    ("L11-data-gone", safetensors({"a": entry()}), r"'a' needs bytes 0-16 .* ends at 0"),
    ("L12-trailing", safetensors({"a": entry()}, bytes(29)), r"13 bytes after the last tensor"),
    ("L12-polyglot", safetensors({}, b"PK\5\6" + bytes(18)), r"22 bytes after the last tensor"),
    (
        "L13-hole",
        safetensors({"a": entry(), "b": entry(offsets=[20, 36])}, bytes(36)),
        r"bytes 16-20 .* no tensor",
    ),
    ("L13-hole-at-start", safetensors({"a": entry(offsets=[4, 20])}, bytes(20)), r"bytes 0-4 .* no tensor"),
    (
        "L14-overlap",
        safetensors({"a": entry(), "b": entry(offsets=[8, 24])}, bytes(24)),
        r"'b' overlaps 'a' at byte 8",
    ),
    ("L14-same-region", safetensors({"a": entry(), "b": entry()}, bytes(16)), r"'b' overlaps 'a' at byte 0"),
    ("L15-negative", _one(offsets=[-16, 0]), r"'a'.data_offsets must be two non-negative integers"),
    (
        "L15-minus-zero",
        safetensors('{"a":{"dtype":"U8","shape":[0],"data_offsets":[-0,0]}}'),
        r"two non-negative integers",
    ),
    ("L15-backwards", _one(offsets=[16, 0]), r"'a'.data_offsets must not decrease"),
    ("L15-float", _one(offsets=[0, 16.0]), r"two non-negative integers"),
    ("L15-string", _one(offsets=["0", "16"]), r"two non-negative integers"),
    ("L15-bool", _one(offsets=[False, True]), r"two non-negative integers"),
    ("L15-three", _one(offsets=[0, 8, 16]), r"two non-negative integers"),
    ("L15-none", _one(offsets=None), r"two non-negative integers"),
    ("L16-size", _one(offsets=[0, 8]), r"'a' F32 \[2, 2\] needs 16 bytes, has 8"),
    ("L17-overflow", _one(shape=[2, 2**63 - 1]), r"'a' shape \[2, 9223372036854775807\] overflows"),
    ("L17-wraps-to-size", _one(shape=[2**62, 4, 4]), r"overflows"),
    ("L17-hidden-by-zero", _one(shape=[2**62, 4, 0], offsets=[0, 0]), r"overflows"),
    (
        "L17-5000-digits",
        safetensors('{"a":{"dtype":"F32","shape":[' + "9" * 3900 + '],"data_offsets":[0,16]}}'),
        r"overflows",
    ),
    ("L18-negative-shape", _one(shape=[-2, -2]), r"'a'.shape is"),
    ("L18-bool-shape", _one(shape=[True, 4]), r"'a'.shape is"),
    ("L18-float-shape", _one(shape=[2.0, 2]), r"'a'.shape is"),
    ("L18-shape-number", _one(shape=4), r"'a'.shape is '4'"),
    ("L18-rank", _one(shape=[1] * 9, dtype="F32", offsets=[0, 4]), r"'a' has 9 dimensions; the limit is 8"),
    ("L19-dtype", _one(dtype="F4", offsets=[0, 2]), r"'a' has dtype 'F4'; minisd reads F64, F32, F16, BF16"),
    ("L19-dtype-number", _one(dtype=32), r"'a' has dtype '32'; minisd reads"),
    (
        "L20-duplicate",
        safetensors('{"a":%s,"a":%s}' % ((json.dumps(entry()),) * 2), bytes(16)),
        r"'a' appears twice",
    ),
    (
        "L20-metadata-twice",
        safetensors('{"__metadata__":{},"__metadata__":{}}'),
        r"'__metadata__' appears twice",
    ),
    ("L20-metadata-key-twice", safetensors('{"__metadata__":{"k":"1","k":"2"}}'), r"'k' appears twice"),
    (
        "L20-field-twice",
        safetensors('{"a":{"dtype":"U8","dtype":"I8","shape":[0],"data_offsets":[0,0]}}'),
        r"each once",
    ),
    (
        "L20-extra-field",
        safetensors({"a": {**entry(), "strides": [1]}}, bytes(16)),
        r"fields .*'strides'; expected dtype",
    ),
    (
        "L20-field-missing",
        safetensors({"a": {"dtype": "F32", "shape": [4]}}, bytes(16)),
        r"expected dtype, shape, data_off",
    ),
    ("L21-metadata-number", safetensors('{"__metadata__":{"k":1}}'), r"__metadata__ 'k' must be a string"),
    (
        "L21-metadata-nested",
        safetensors('{"__metadata__":{"k":{"l":"m"}}}'),
        r"__metadata__ 'k' must be a string",
    ),
    ("L21-metadata-list", safetensors('{"__metadata__":[]}'), r"'__metadata__' is not a JSON object"),
    (
        "L22-metadata",
        safetensors({"__metadata__": {str(i): "" for i in range(20_001)}}),
        r"__metadata__ has over 20,000 entries",
    ),
    (
        "L22-many",
        safetensors(
            "{"
            + ",".join(f'"{i}":{{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}' for i in range(20_001))
            + "}"
        ),
        r"20,001 tensors; the limit is 20,000",
    ),
    (
        "L23-escape",
        safetensors({"a\x1b[31m": entry()}, bytes(16)),
        r"'a\\x1b\[31m' holds a control character",
    ),
    ("L23-nul", safetensors({"a\0": entry()}, bytes(16)), r"control character"),
    ("L23-c1", safetensors({"a\x9b": entry()}, bytes(16)), r"control character"),
    ("L23-long", safetensors({"a" * 513: entry()}, bytes(16)), r"has 513 bytes; the limit is 512"),
    (
        "bool-byte",
        safetensors({"a": entry("BOOL", [2], [0, 2])}, b"\1\2"),
        r"BOOL tensor holds bytes other than 0 and 1",
    ),
]


def written(folder: Path, name: str, content: bytes) -> Path:
    path = folder / name
    path.write_bytes(content)
    return path
