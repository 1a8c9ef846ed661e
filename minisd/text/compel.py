r"""Weights as Compel writes them: `word+`, `word--`, `(two words)++`, `(two words)1.3`, nested at will.

    +   1.1 times, each      -   0.9 times, each      (x)1.3   1.3 times
    \( \) \+ \- \\           the character itself

A sign belongs to the word or bracket right before it, and must be followed by a blank, a bracket, a comma or
the end: in `t-shirt` there is none. Brackets that do not close, and closing ones that close nothing, are
text. Of Compel's grammar, `.and()`, `.blend()` and `.swap()` are left out: BREAK, `prompt_to` and editing do
that work here.
"""

from __future__ import annotations

import re

from minisd.errors import RequestError, quoted
from minisd.text.weights import MAX_WEIGHT, Span

MORE, LESS = 1.1, 0.9
# every character belongs to one token, found without looking back
TOKEN = re.compile(r"\\[()+\-\\]|[(),]|\++|-+|\s+|[^\\()+\-,\s]+|\\")
NUMBER = re.compile(r"(?:\d++\.?+\d*+|\.\d++)(?=[\s,)]|\Z)")
ENDS = (")", "(", ",", "")


class Group:
    """A bracket while it is read: its pieces, (text, weight) or groups that are closed."""

    __slots__ = ("pieces", "weight")

    def __init__(self) -> None:
        self.pieces: list[str | Group] = []
        self.weight = 1.0


def read_compel(text: str) -> tuple[Span, ...]:
    """Spans whose neighbours differ in weight; at least one. Raises RequestError for a weight beyond
    MAX_WEIGHT. Time grows with the length of the text."""
    tokens = TOKEN.findall(text)
    groups = [Group()]
    for place, token in enumerate(tokens):
        top = groups[-1]
        after = tokens[place + 1] if place + 1 < len(tokens) else ""
        if token == "(":
            groups.append(Group())
        elif token == ")" and len(groups) > 1:
            closed = groups.pop()
            groups[-1].pieces.append(closed)
        elif token[0] in "+-" and signed(top, after):
            last = top.pieces[-1]
            if isinstance(last, str):
                last = word(last)
                top.pieces[-1] = last
            last.weight *= (MORE if token[0] == "+" else LESS) ** min(len(token), 200)
        elif (
            top.pieces
            and isinstance(group := top.pieces[-1], Group)
            and place > 0
            and tokens[place - 1] == ")"
            and (number := NUMBER.match(token))
        ):
            group.weight *= float(number.group())
            top.pieces.append(token[number.end() :])
        else:
            top.pieces.append(token[1:] if token[0] == "\\" and len(token) > 1 else token)
    for loose in groups[1:]:  # never closed: its bracket is text
        groups[0].pieces += ["(", *loose.pieces]
    return flattened(groups[0])


def word(text: str) -> Group:
    group = Group()
    group.pieces.append(text)
    return group


def signed(group: Group, after: str) -> bool:
    """Whether a sign behind what the group holds, and before `after`, weighs it."""
    if not group.pieces:
        return False
    last = group.pieces[-1]
    return (isinstance(last, Group) or not last.isspace()) and (after[:1] in ENDS or after.isspace())


def flattened(root: Group) -> tuple[Span, ...]:
    """The words in their order, each with the product of the weights about it; equal neighbours joined."""
    out: list[tuple[str, float]] = []
    waiting: list[tuple[str | Group, float]] = [(root, 1.0)]
    while waiting:
        piece, weight = waiting.pop()
        if isinstance(piece, Group):
            inner = weight * piece.weight
            if abs(inner) > MAX_WEIGHT:
                raise RequestError(
                    f"a weight of the prompt is {quoted(f'{inner:g}')}; it must lie in 0..{MAX_WEIGHT:g}",
                    field="prompt",
                )
            waiting += [(p, inner) for p in reversed(piece.pieces)]
        elif piece:
            out.append((piece, weight))
    spans: list[Span] = []
    run: list[str] = []
    for index, (text, weight) in enumerate(out):
        run.append(text)
        if index + 1 == len(out) or out[index + 1][1] != weight:
            spans.append(Span("".join(run), weight))
            run = []
    return tuple(spans) or (Span(""),)
