r"""Prompts that change while a picture is drawn: `[a:b:0.4]`, `[a::5]`, `[a:5]`, `[a|b]`, nested at will.

    [a:b:n]   a, and b after step n      n with a point is a part of the run, without one a step
    [a:n]     nothing, then a            [a::n]   a, then nothing          [a|b|c]   in turn, step by step

The grammar is the community's, its refusals included: what is not well formed is text, brackets and all. A
bar outside `[..|..]` makes all of the prompt text there; only `bars_are_text` reads the rest.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from minisd.errors import RequestError

# every character belongs to one token; a backslash belongs to the character behind it
TOKEN = re.compile(r"(?:\\.|[^\\\[\]():|])+|[\[\]():|]|\\\n?")
NUMBER = re.compile(r"\s*+([+-]?(?:\d++(?:\.\d*+)?+|\.\d++)(?:[eE][+-]?\d++)?+)\s*+")
MAX_WORK = 20_000_000  # pieces of a prompt times steps at which it changes


@dataclass(frozen=True, eq=False)
class Switch:
    """`before` until a step, `after` from then on."""

    before: Sequence[Node]
    after: Sequence[Node]
    number: str


@dataclass(frozen=True, eq=False)
class Cycle:
    """One option after the other, one a step."""

    options: tuple[Sequence[Node], ...]


Node = str | Switch | Cycle | Sequence["Node"]


@dataclass(frozen=True)
class Clock:
    """What numbers in a prompt mean: `steps` of this pass. With a first pass before it (`earlier` steps, high
    resolution fix) whole numbers count on from its end, and parts of the run from 1.0. old: any number below
    1 is a part of the run, any other one a step (A1111 before 1.6)."""

    steps: int
    earlier: int | None = None
    old: bool = False

    def step(self, number: str) -> int:
        """The last step before a switch, not above `steps`; 0 or less: it has happened from the start."""
        value = float(number)
        if self.old:
            value = value * self.steps if value < 1 else value
        elif "." in number:
            value = (value - (0.0 if self.earlier is None else 1.0)) * self.steps
        else:
            value -= self.earlier or 0
        return int(min(float(self.steps), max(value, -1.0)))


class Frame:
    """An open bracket while a prompt is read: its parts so far, and the signs between them."""

    __slots__ = ("kind", "parts", "signs")

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.parts: list[list[Node]] = [[]]
        self.signs: list[str] = []

    def as_text(self) -> Iterator[Node]:
        """The parts with the signs between them."""
        for index, part in enumerate(self.parts):
            if index > 0:
                yield self.signs[index - 1]
            yield part


def read(prompt: str, *, bars_are_text: bool = False) -> list[Node] | None:
    """A prompt as nested nodes; None where A1111 leaves all of it as it is."""
    frames = [Frame("")]

    def scatter() -> None:
        """Brackets that are still open turn out to be text: a sign that fits nowhere stands inside them."""
        root = frames[0]
        for frame in frames[1:]:
            root.parts[-1] += [frame.kind, *frame.as_text()]
            spoilt.extend(s for s in frame.signs if s == "|")
        del frames[1:]

    spoilt: list[str] = []
    for token in TOKEN.findall(prompt):
        top = frames[-1]
        if token[0] == "\\" and (token == "\\" or token == "\\\n"):
            return None  # a backslash with nothing behind it
        if token in ("(", "["):
            frames.append(Frame(token))
        elif token in (")", "]"):
            node = closed(top, token, bars_are_text)
            if node is not None:
                frames.pop()
                frames[-1].parts[-1].append(node)
            else:
                scatter()
                frames[0].parts[-1].append(token)
        elif token in (":", "|") and top.kind:
            top.signs.append(token)
            top.parts.append([])
        else:
            if token == "|":
                spoilt.append(token)
            top.parts[-1].append(token)
    scatter()
    return None if spoilt and not bars_are_text else frames[0].parts[-1]


def closed(frame: Frame, bracket: str, bars_are_text: bool) -> Node | None:
    """What a frame is once `bracket` closes it; None if that is nothing the grammar knows."""
    if frame.kind + bracket == "()":
        bars = bars_are_text and "|" in frame.signs
        if frame.signs in ([], [":"]) or (bars and frame.signs.count(":") <= 1):
            return ["(", *frame.as_text(), ")"]
        return None
    if frame.kind + bracket != "[]":
        return None
    if not frame.signs:
        return ["[", *frame.as_text(), "]"]
    if "|" in frame.signs:
        return Cycle(tuple(frame.parts)) if ":" not in frame.signs else None
    number = NUMBER.fullmatch("".join(p for p in frame.parts[-1] if isinstance(p, str)))
    if number is None or len(frame.signs) > 2 or not all(isinstance(p, str) for p in frame.parts[-1]):
        return None
    before = frame.parts[0] if len(frame.signs) == 2 else []
    return Switch(before, frame.parts[-2], number.group(1))


def switches(nodes: Sequence[Node]) -> Iterator[Switch | Cycle]:
    """All that changes, in no particular order."""
    waiting: list[Node] = [nodes]
    while waiting:
        node = waiting.pop()
        if isinstance(node, Switch):
            yield node
            waiting += [node.before, node.after]
        elif isinstance(node, Cycle):
            yield node
            waiting += node.options
        elif not isinstance(node, str):
            waiting += node


def text_at(nodes: Sequence[Node], step: int, clock: Clock) -> str:
    """What the prompt says at a step, counted from 1."""
    out: list[str] = []
    waiting: list[Node] = [nodes]
    while waiting:
        node = waiting.pop()
        if isinstance(node, str):
            out.append(node)
        elif isinstance(node, Switch):
            waiting.append(node.before if step <= clock.step(node.number) else node.after)
        elif isinstance(node, Cycle):
            waiting.append(node.options[(step - 1) % len(node.options)])
        else:
            waiting += reversed(node)
    return "".join(out)


def timetable(prompt: str, clock: Clock, *, bars_are_text: bool = False) -> tuple[tuple[int, str], ...]:
    """((last step, text), ...): what the prompt says until each step; the last entry ends with the run.

    Raises RequestError for a prompt that changes so often and is so long that reading it would take minutes.
    Time grows with the prompt's length times the number of changes.
    """
    nodes = read(prompt, bars_are_text=bars_are_text)
    if nodes is None:
        return ((clock.steps, prompt),)
    ends, pieces = {clock.steps}, 0
    for node in switches(nodes):
        pieces += 1
        if isinstance(node, Cycle):
            ends |= set(range(1, clock.steps + 1)) if len(ends) < clock.steps else set()
            pieces += len(node.options)
        elif clock.step(node.number) >= 1:
            ends.add(clock.step(node.number))
    if len(ends) * max(pieces, len(prompt)) > MAX_WORK and len(ends) > 1:
        raise RequestError(
            f"the prompt changes at {len(ends):,} steps and has {len(prompt):,} characters; shorten it",
            field="prompt",
        )
    same: dict[str, str] = {}  # equal texts are one object, so that a thousand steps cost no more than two
    texts = ((end, text_at(nodes, end, clock)) for end in sorted(ends))
    return tuple((end, same.setdefault(text, text)) for end, text in texts)
