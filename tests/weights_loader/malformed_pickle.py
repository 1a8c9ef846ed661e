"""Pickle programs that must be refused, assembled by opcode, and the legacy form of torch checkpoints around
them.

A case is (name, bytes, pattern of the message). CANARY stands for a file that running the program would make.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

from tests.weights_loader.malformed import Case

FOUR = struct.pack("<4f", 1, 2, 3, 4)


def glob(name: str) -> bytes:
    """GLOBAL: `module.name`."""
    module, _, attribute = name.rpartition(".")
    return f"c{module}\n{attribute}\n".encode()


def text(value: str) -> bytes:
    raw = value.encode("utf-8", "surrogatepass")
    return b"X" + struct.pack("<I", len(raw)) + raw


def number(value: int) -> bytes:
    raw = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(raw)]) + raw


def tup(*items: bytes) -> bytes:
    return b"(" + b"".join(items) + b"t"


def numbers(*values: int) -> bytes:
    return tup(*map(number, values))


def storage(
    key: str = "0", numel: int = 4, kind: str = "torch.FloatStorage", location: str = "cpu", view: bytes = b""
) -> bytes:
    """A persistent reference as torch.save writes it in a zip; with a sixth part, `view`, before torch "
    "1.6."""
    return tup(text("storage"), glob(kind), text(key), text(location), number(numel), view) + b"Q"


def tensor(
    where: bytes | None = None, offset: int = 0, shape: Sequence[int] = (4,), stride: Sequence[int] = (1,)
) -> bytes:
    args = (where or storage(), number(offset), numbers(*shape), numbers(*stride), b"\x89", ordered())
    return glob("torch._utils._rebuild_tensor_v2") + tup(*args) + b"R"


def ordered() -> bytes:
    return glob("collections.OrderedDict") + b")R"


def state(**items: bytes) -> bytes:
    """A whole pickle: a dict of these."""
    return b"\x80\x02}(" + b"".join(text(k) + v for k, v in items.items()) + b"u."


def raw(program: bytes) -> bytes:
    return b"\x80\x02" + program + b"."


_LEVELS = (b"](" + bytes([ord("h"), i]) * 8 + bytes([ord("e"), ord("q"), i + 1]) for i in range(40))
_DAG = (
    b"(](NNNNNNNNeq\0" + b"".join(_LEVELS) + b"t"
)  # each list holds the one before eight times: 8^41 leaves

PICKLE_CASES: list[Case] = [
    (
        "L34-os.system",
        state(a=glob("os.system") + tup(text("touch CANARY")) + b"R"),
        r"data.pkl asks for os.system.*\(offset 10\). Nothing",
    ),
    ("L34-posix", raw(glob("posix.system") + tup(text("touch CANARY")) + b"R"), r"asks for posix.system"),
    (
        "L34-eval",
        raw(glob("builtins.eval") + tup(text("open('CANARY','w')")) + b"R"),
        r"asks for builtins.eval",
    ),
    ("L34-getattr", raw(glob("__builtin__.getattr") + b")R"), r"asks for __builtin__.getattr"),
    ("L34-unimported", raw(glob("this.s") + b")R"), r"asks for this.s"),
    ("L34-torch-load", raw(glob("torch.load") + tup(text("x")) + b"R"), r"asks for torch.load"),
    (
        "L34-dotted",
        raw(b"ctorch\nserialization.os.system\n" + tup(text("touch CANARY")) + b"R"),
        r"asks for torch.serial",
    ),
    ("L34-escape", raw(b"cos\x1b[2J\nsystem\n"), r"asks for os\\x1b\[2J.system"),
    (
        "L37-stack-global",
        raw(text("os") + text("system") + b"\x93"),
        r"opcode STACK_GLOBAL, which is not allowed",
    ),
    ("L37-inst", raw(b"(X\2\0\0\0idios\nsystem\n"), r"opcode INST, which is not allowed"),
    ("L37-obj", raw(b"(cos\nsystem\no"), r"asks for os.system"),
    (
        "L37-obj-known",
        raw(b"(" + glob("collections.OrderedDict") + b"o"),
        r"opcode OBJ, which is not allowed",
    ),
    (
        "L37-newobj-ex",
        raw(glob("collections.OrderedDict") + b")}\x92"),
        r"opcode NEWOBJ_EX, which is not allowed",
    ),
    ("L37-ext", raw(b"\x82\1"), r"opcode EXT1, which is not allowed"),
    ("L37-persid", raw(b"Pstorage\n"), r"opcode PERSID, which is not allowed"),
    ("L37-unknown", raw(b"\xff"), r"opcode 0xff, which is not allowed"),
    ("L37-build-dict", raw(b"}}b"), r"opcode BUILD: gives attributes to what takes none"),
    ("L37-build-name", raw(glob("torch.Size") + b"}b"), r"opcode BUILD"),
    ("L37-setitem-list", raw(b"]" + text("a") + b"Ns"), r"sets items of what is not a dict"),
    ("L37-setitems-odd", raw(b"}(" + text("a") + b"u"), r"sets items of what is not a dict"),
    ("L37-append-dict", raw(b"}Na"), r"appends to what is not a list"),
    ("L37-reduce-string", raw(text("os.system") + b")R"), r"calls what is not a function"),
    ("L37-reduce-storage", raw(glob("torch.FloatStorage") + b")R"), r"calls what is not a function"),
    ("L37-reduce-args", raw(glob("torch._utils._rebuild_tensor_v2") + b")R"), r"arguments that do not fit"),
    (
        "L37-rebuild-number",
        raw(glob("torch._utils._rebuild_tensor_v2") + tup(b"K\0", b"K\0", b")", b")") + b"R"),
        r"do not fit",
    ),
    ("L37-tuple-key", raw(b"})Ns"), r"dict key of type tuple"),
    ("L37-key-twice", state(a=b"N")[:-2] + text("a") + b"Nu.", r"sets the key 'a' twice"),
    ("L37-protocol-4", b"\x80\x04}.", r"pickle protocol 4; torch.save writes 2"),
    ("L38-empty", b"", r"ends unexpectedly"),
    ("L38-no-stop", b"\x80\x02}", r"ends unexpectedly: 1 more bytes were expected \(offset 3\)"),
    ("L38-underflow", raw(b"R"), r"takes a value from an empty stack"),
    ("L38-no-mark", raw(b"t"), r"has no mark"),
    ("L38-two-values", raw(b"}}"), r"stack that does not hold one value"),
    ("L38-open-mark", raw(b"}("), r"stack that does not hold one value"),
    ("L38-memo", raw(b"h\5"), r"takes memo 5, which was never put"),
    ("L38-string-over-file", b"\x80\x02X\xff\xff\xff\x7fabc", r"ends unexpectedly: 2,147,483,647 more bytes"),
    ("L38-string-not-utf8", b"\x80\x02X\1\0\0\0\xff.", r"not UTF-8"),
    ("L38-long-name", b"\x80\x02c" + b"a" * 300, r"name of over 256 bytes"),
    ("L39-opcodes", b"\x80\x02" + b"N" * 1_000_001 + b".", r"over 1,000,000 opcodes"),
    ("L39-depth", raw(b"]" * 200 + b"a" * 199), r"nested deeper than 100"),
    ("L39-depth-tuple", raw(b")" + b"\x85" * 200_000), r"nested deeper than 100"),
    ("L39-dag", raw(_DAG), r"of over 1,000,000 leaves"),
    ("L39-cycle", raw(b"]q\0h\0a"), r"contains itself"),
    ("L42-outside", state(a=tensor(shape=[5])), r"'a' views 5 elements of a 4-element storage"),
    (
        "L42-offset",
        state(a=tensor(offset=1)),
        r"'a' views 4 elements of a 4-element storage, up to element 5 from 1",
    ),
    ("L42-negative-offset", state(a=tensor(offset=-1)), r"'a' views"),
    ("L42-negative-stride", state(a=tensor(offset=3, stride=[-1])), r"'a' has strides '\[-1\]'"),
    ("L42-huge-stride", state(a=tensor(shape=[2], stride=[2**62])), r"'a' views 2 elements"),
    ("L42-stride-over-i64", state(a=tensor(shape=[2], stride=[2**64])), r"'a' has strides"),
    (
        "L42-expanded",
        state(a=tensor(shape=[10**6, 10**6], stride=[0, 0])),
        r"'a' views 1,000,000,000,000 elements of a 4-el",
    ),
    (
        "L42-ranks-differ",
        state(a=tensor(shape=[2, 2], stride=[1])),
        r"'a' has strides '\[1\]' for shape \[2, 2\]",
    ),
    ("L42-negative-shape", state(a=tensor(shape=[-4])), r"'a'.shape is"),
    ("L42-overflow", state(a=tensor(shape=[2**62, 2**62], stride=[0, 0])), r"'a' shape .* overflows"),
    (
        "L42-numel-lies",
        state(a=tensor(storage(numel=5))),
        r"storage '0' declares 5 elements of torch.float32.*16 bytes",
    ),
    (
        "L42-dtype-lies",
        state(a=tensor(storage(kind="torch.DoubleStorage"))),
        r"storage '0' declares 4 elements of torch.float64",
    ),
    (
        "L42-two-readings",
        state(a=tensor(), b=tensor(storage(kind="torch.IntStorage"))),
        r"storage '0' in two ways",
    ),
    ("L42-negative-numel", state(a=tensor(storage(numel=-1))), r"negative size"),
    (
        "L42-record-missing",
        state(a=tensor(storage(key="../../x"))),
        r"record of storage '../../x' is missing",
    ),
    (
        "L43-quantised-storage",
        state(a=tensor(storage(kind="torch.QInt8Storage"))),
        r"asks for torch.QInt8Storage",
    ),
    (
        "L43-sparse",
        raw(glob("torch._utils._rebuild_sparse_tensor") + b")R"),
        r"asks for torch._utils._rebuild_sparse_tensor",
    ),
    (
        "L43-meta",
        raw(glob("torch._utils._rebuild_meta_tensor_no_storage") + b")R"),
        r"asks for torch._utils._rebuild_meta",
    ),
    ("L43-storage-kind", state(a=tensor(storage(kind="torch.Size"))), r"malformed reference to a storage"),
    ("L43-module", raw(tup(text("module"), b"N", b"N", b"N", b"N") + b"Q"), r"other than a storage"),
    ("top-tensor", raw(tensor()), r"holds one tensor; expected a dict"),
    ("top-list", raw(b"]"), r"holds a list; expected a dict"),
    ("top-no-tensors", raw(b"}"), r"holds no tensors"),
    ("name-control", state(**{"a\x1b": tensor()}), r"control character"),
    ("name-surrogate", state(**{"a\ud800": tensor()}), r"not valid Unicode"),
    (
        "name-twice-nested",
        state(**{"a.b": tensor(), "a": b"}" + text("b") + tensor() + b"s"}),
        r"'a.b' comes up twice",
    ),
    ("bytes-after-stop", state(a=tensor()) + b"N.", r"has 2 bytes after its end"),
]


GOOD_PICKLE = state(a=tensor())


def legacy(
    program: bytes | None = None,
    *,
    keys: Sequence[str] = ("0",),
    numel: int = 4,
    protocol: int = 1001,
    little: bool = True,
    data: bytes = FOUR,
) -> bytes:
    """Five stacked pickles, then the storages; the reference to a storage has a sixth part there."""
    where = storage(view=b"N")
    system = raw(b"}" + text("little_endian") + (b"\x88" if little else b"\x89") + b"s")
    head = raw(number(0x1950A86A20F9469CFC6C)) + raw(number(protocol)) + system
    main = state(a=tensor(where)) if program is None else program
    listed = raw(b"](" + b"".join(map(text, keys)) + b"e")
    return head + main + listed + b"".join(numel.to_bytes(8, "little", signed=True) + data for _ in keys)


LEGACY_CASES: list[Case] = [
    (
        "L34-os.system",
        legacy(raw(glob("os.system") + tup(text("touch CANARY")) + b"R")),
        r"asks for os.system",
    ),
    (
        "L34-in-front",
        raw(glob("os.system") + tup(text("touch CANARY")) + b"R") + legacy(),
        r"asks for os.system",
    ),
    ("plain-pickle", raw(b"}"), r"is a plain pickle, not a checkpoint of torch.save"),
    ("L38-cut-in-pickles", legacy()[:60], r"ends unexpectedly"),
    ("L41-truncated", legacy()[:-1], r"storage '0' needs 16 bytes beyond the end: truncated"),
    ("L41-truncated-count", legacy()[:-20], r"truncated"),
    ("L41-appended", legacy() + b"x", r"1 bytes after the last storage"),
    ("L42-numel", legacy(numel=5), r"storage '0' declares 4 elements, but 5 are stored"),
    ("L42-numel-negative", legacy(numel=-4), r"but -4 are stored"),
    ("L42-key-unknown", legacy(keys=("1",)), r"storage '1' is listed twice or belongs to no tensor"),
    ("L42-key-twice", legacy(keys=("0", "0")), r"storage '0' is listed twice"),
    ("L42-key-missing", legacy(keys=()), r"storages '0' are missing"),
    ("L43-big-endian", legacy(little=False), r"big-endian machine"),
    ("protocol", legacy(protocol=1002), r"legacy checkpoint of protocol '1002'"),
    ("keys-not-list", legacy()[: legacy().index(b"\x80\x02](")] + raw(b"}"), r"list of storages is a dict"),
    (
        "storage-part",
        legacy(state(a=tensor(storage(view=tup(text("1"), number(0), number(4)))))),
        r"part of a storage",
    ),
]
