"""The pickles that torch.save writes, read as data: nothing is imported, nothing of the file's choosing is
called.

A pickle is a program for a stack machine. This one knows the 32 opcodes of protocol 2 that plain containers,
numbers and tensors need, and a table of names, each standing for a marker or for a function of this file that
builds a description. Every other opcode or name is refused, with its offset. Opcodes: Python's pickletools.
Names: what torch.save writes (torch/_utils.py, torch/serialization.py), and those in released checkpoints.
Left out: protocols 0, 1 and 3 up, sparse, quantised and meta tensors, whole modules.
"""

from __future__ import annotations

import pickletools
import struct
from collections.abc import Callable
from dataclasses import dataclass

from minisd.errors import CheckpointError, quoted
from minisd.weights_loader.limits import MAX_HEADER
from minisd.weights_loader.pickle_values import (
    KEYS,
    NAMES,
    BadArguments,
    Inert,
    Name,
    OrderedDict,
    ParameterDict,
    StorageRef,
)

MAX_OPCODES = 1_000_000  # SDXL's 2,515 tensors take some 80,000
MAX_DEPTH = 100
MAX_LEAVES = 1_000_000  # of the value written out as a tree: sharing can make it exponentially larger
_WINDOW = 2**16
_OPCODES = {op.code: op.name for op in pickletools.opcodes}  # names, for messages


@dataclass(frozen=True, slots=True)
class Pickle:
    """What a pickle holds, the byte after its STOP, and every storage it refers to, by key."""

    value: object
    end: int
    storages: dict[str, StorageRef]


def read_pickle(read: Callable[[int, int], bytes], at: int, end: int, where: str) -> Pickle:
    """Reads the pickle that starts at byte `at`.

    `read(at, count)` gives bytes of the file; none at or beyond `end` are asked for. `where` opens every
    message. The value consists of dict, list, tuple, str, bytes, numbers, None, TensorRef, StorageRef, Name
    and Inert.

    Raises CheckpointError for anything else, over a million opcodes, nesting over 100, or sharing that would
    write out to over a million leaves.
    """
    machine = _Machine(read, at, min(end, at + MAX_HEADER), where)
    value = machine.run()
    _check_tree(value, where)
    return Pickle(value, machine.at, machine.storages)


class _Machine:
    def __init__(self, read: Callable[[int, int], bytes], at: int, end: int, where: str) -> None:
        self.read, self.at, self.end, self.where = read, at, end, where
        self.start = at
        self.window, self.window_at = b"", at
        self.stack: list[object] = []
        self.marks: list[list[object]] = []
        self.memo: dict[int, object] = {}
        self.storages: dict[str, StorageRef] = {}

    def run(self) -> object:
        for _ in range(MAX_OPCODES):
            code = self.take(1)
            if code == b".":
                if self.marks or len(self.stack) != 1:
                    raise self.error("stops with a stack that does not hold one value")
                return self.stack[0]
            action = _ACTIONS.get(code)
            if action is None:
                name = _OPCODES.get(code.decode("latin-1"), f"0x{code.hex()}")
                raise self.error(f"uses opcode {name}, which is not allowed in weights", 1)
            action(self)
        raise self.error(f"has over {MAX_OPCODES:,} opcodes; refusing")

    def error(self, message: str, back: int = 0) -> CheckpointError:
        return CheckpointError(
            f"{self.where} {message} (offset {self.at - self.start - back:,}). Nothing was executed."
        )

    def take(self, count: int) -> bytes:
        if count > self.end - self.at:
            raise self.error(f"ends unexpectedly: {count:,} more bytes were expected")
        start = self.at - self.window_at
        if start + count > len(self.window):
            size = max(count, min(_WINDOW, self.end - self.at))
            self.window, self.window_at, start = self.read(self.at, size), self.at, 0
        self.at += count
        return self.window[start : start + count]

    def number(self, form: str) -> int:
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]

    def line(self) -> str:
        taken = bytearray()
        while (byte := self.take(1)) != b"\n":
            taken += byte
            if len(taken) > 256:
                raise self.error("has a name of over 256 bytes")
        return taken.decode("latin-1")

    def push(self, value: object) -> None:
        self.stack.append(value)

    def pop(self) -> object:
        if not self.stack:
            raise self.error("takes a value from an empty stack", 1)
        return self.stack.pop()

    def pop_mark(self) -> list[object]:
        if not self.marks:
            raise self.error("has no mark to go back to", 1)
        items, self.stack = self.stack, self.marks.pop()
        return items

    def mark(self) -> None:
        self.marks.append(self.stack)
        self.stack = []

    def protocol(self) -> None:
        version = self.number("B")
        if version != 2:
            raise self.error(
                f"is of pickle protocol {version}; torch.save writes 2: save it again with torch.save", 2
            )

    def text(self) -> None:
        raw = self.take(self.number("<I"))
        try:
            self.push(raw.decode("utf-8", "surrogatepass"))
        except UnicodeDecodeError:
            raise self.error("has a string that is not UTF-8") from None

    def name(self) -> None:
        at = self.at - 1
        wanted = f"{self.line()}.{self.line()}"
        known = NAMES.get(wanted)
        if known is None:
            back = self.at - at
            raise self.error(
                f"asks for {quoted(wanted)[1:-1]}, which no weights need or minisd does not read; refusing",
                back,
            )
        self.push(known)

    def tuple_of(self, count: int) -> None:
        items = [self.pop() for _ in range(count)]
        self.push(tuple(reversed(items)))

    def put(self, form: str) -> None:
        index = self.number(form)
        value = self.pop()
        self.push(value)
        self.memo[index] = value

    def get(self, form: str) -> None:
        index = self.number(form)
        if index not in self.memo:
            raise self.error(f"takes memo {index}, which was never put")
        self.push(self.memo[index])

    def set_items(self, items: list[object]) -> None:
        target = self.pop()
        if not isinstance(target, dict) or len(items) % 2:
            raise self.error("sets items of what is not a dict", 1)
        for key, value in zip(items[::2], items[1::2], strict=True):
            if type(key) not in KEYS:
                raise self.error(f"has a dict key of type {type(key).__name__}", 1)
            if key in target:
                raise self.error(f"sets the key {quoted(key)} twice", 1)
            target[key] = value
        self.push(target)

    def set_item(self) -> None:
        value, key = self.pop(), self.pop()
        self.set_items([key, value])

    def append(self, items: list[object]) -> None:
        target = self.pop()
        if not isinstance(target, list):
            raise self.error("appends to what is not a list", 1)
        target.extend(items)
        self.push(target)

    def call(self) -> None:
        args, function = self.pop(), self.pop()
        if not isinstance(function, Name) or function.make is None or not isinstance(args, tuple):
            raise self.error("calls what is not a function of the table", 1)
        try:
            self.push(function.make(args))
        except (BadArguments, ValueError, IndexError):  # ValueError: too few arguments, text beyond latin-1
            raise self.error(f"calls {function.name} with arguments that do not fit it", 1) from None

    def build(self) -> None:
        state, target = self.pop(), self.pop()
        if not isinstance(target, OrderedDict | Inert):
            raise self.error("opcode BUILD: gives attributes to what takes none", 1)
        if isinstance(target, ParameterDict):
            content = state.get("_parameters") if isinstance(state, dict) else None
            if not isinstance(content, dict) or target:
                raise self.error("opcode BUILD: has a ParameterDict without its parameters", 1)
            target.update(content)
        self.push(target)

    def persistent(self) -> None:
        parts = self.pop()
        if not isinstance(parts, tuple) or len(parts) not in (5, 6) or parts[0] != "storage":
            raise self.error("refers to something other than a storage (a whole module?)", 1)
        _, kind, key, location, numel, *view = parts
        fits = isinstance(kind, Name) and kind.dtype is not None and kind.name.endswith("Storage")
        if not fits or not isinstance(key, str) or not isinstance(location, str) or type(numel) is not int:
            raise self.error("has a malformed reference to a storage", 1)
        if view not in ([], [None]):
            raise self.error("refers to a part of a storage as torch before 0.4 did; not read", 1)
        assert isinstance(kind, Name) and kind.dtype is not None
        storage = StorageRef(key, kind.dtype, numel, location)
        if numel < 0 or self.storages.setdefault(key, storage) != storage:
            raise self.error(f"describes the storage {quoted(key)} in two ways or with a negative size", 1)
        self.push(storage)


_ACTIONS: dict[bytes, Callable[[_Machine], None]] = {
    b"\x80": _Machine.protocol,
    b"c": _Machine.name,
    b"(": _Machine.mark,
    b"}": lambda m: m.push({}),
    b"]": lambda m: m.push([]),
    b")": lambda m: m.push(()),
    b"N": lambda m: m.push(None),
    b"\x88": lambda m: m.push(True),
    b"\x89": lambda m: m.push(False),
    b"J": lambda m: m.push(m.number("<i")),
    b"K": lambda m: m.push(m.number("<B")),
    b"M": lambda m: m.push(m.number("<H")),
    b"\x8a": lambda m: m.push(int.from_bytes(m.take(m.number("B")), "little", signed=True)),
    b"G": lambda m: m.push(m.number(">d")),
    b"X": _Machine.text,
    b"t": lambda m: m.push(tuple(m.pop_mark())),
    b"\x85": lambda m: m.tuple_of(1),
    b"\x86": lambda m: m.tuple_of(2),
    b"\x87": lambda m: m.tuple_of(3),
    b"q": lambda m: m.put("B"),
    b"r": lambda m: m.put("<I"),
    b"h": lambda m: m.get("B"),
    b"j": lambda m: m.get("<I"),
    b"s": _Machine.set_item,
    b"u": lambda m: m.set_items(m.pop_mark()),
    b"a": lambda m: m.append([m.pop()]),
    b"e": lambda m: m.append(m.pop_mark()),
    b"R": _Machine.call,
    b"\x81": _Machine.call,  # NEWOBJ: class and arguments, as REDUCE has them
    b"b": _Machine.build,
    b"Q": _Machine.persistent,
}


def _check_tree(root: object, where: str) -> None:
    """Refuses values that are too deep, refer to themselves, or would be enormous written out. Never
    recursive.
    """
    done: dict[int, tuple[int, int]] = {}  # id -> depth, leaves
    open_: set[int] = set()
    todo: list[object] = [root]
    while todo:
        value = todo[-1]
        if id(value) in done or not isinstance(value, dict | list | tuple):
            todo.pop()
            continue
        children = value.values() if isinstance(value, dict) else value
        if id(value) not in open_:
            open_.add(id(value))
            for child in children:
                if isinstance(child, dict | list | tuple):
                    if id(child) in open_ and id(child) not in done:
                        raise CheckpointError(f"{where} holds a container that contains itself; refusing")
                    todo.append(child)
            continue
        facts = [done.get(id(child), (0, 1)) for child in children]
        depth = 1 + max((d for d, _ in facts), default=0)
        leaves = 1 + sum(n for _, n in facts)
        if depth > MAX_DEPTH or leaves > MAX_LEAVES:
            what = (
                f"nested deeper than {MAX_DEPTH}" if depth > MAX_DEPTH else f"of over {MAX_LEAVES:,} leaves"
            )
            raise CheckpointError(f"{where} describes a value {what}; refusing")
        done[id(value)] = depth, leaves
        todo.pop()
