r"""Weights of the words of a prompt: `(x:1.3)`, `(x)`, `[x]`, escapes and BREAK, in the community's grammar.

    (x)   1.1 times        [x]   1/1.1 times        (x:1.3)   1.3 times; nesting multiplies
    \( \) \[ \] \\         the character itself; another backslash is left out
    BREAK                  the next word begins a new chunk

Brackets that do not close weigh to the end of the text; a closing one that closes nothing is text.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from minisd.errors import RequestError, quoted

Emphasis = Literal["mean", "plain", "compel", "ignore"]  # how weights act: `emphasis.py`
ROUND, SQUARE = 1.1, 1 / 1.1
MAX_NESTING = 64  # brackets of a kind about a word that count; further ones are read and change nothing
MAX_WEIGHT = 1000.0
# every character belongs to one token, found without looking back
TOKEN = re.compile(r"\\[()\[\]\\]|[()\[\]:]|[^\\()\[\]:]+|\\")
NUMBER = re.compile(r"\s*+([+-]?(?:\d++\.?+\d*+|\.\d++))\s*+")
BREAK = re.compile(r"\bBREAK\b")


@dataclass(frozen=True)
class Span:
    """A piece of a prompt with one weight. `breaks`: the word BREAK, at which a chunk may end."""

    text: str
    weight: float = 1.0
    breaks: bool = False


class Bracket:
    """One opened bracket. What it multiplies by, and after which others, is known when it closes."""

    __slots__ = ("closed_at", "factor", "outer")

    def __init__(self, factor: float, outer: Bracket | None) -> None:
        self.factor = factor
        self.outer = outer  # the bracket of the same kind around it
        self.closed_at: int | None = None

    def and_outer(self) -> Iterator[Bracket]:
        bracket: Bracket | None = self
        for _ in range(MAX_NESTING):
            if bracket is None:
                return
            yield bracket
            bracket = bracket.outer


def weight_under(round_one: Bracket | None, square: Bracket | None) -> float:
    """Weight of a word under these innermost brackets: those that closed in the order in which they did, then
    round ones that never closed, then square ones. Other orders of multiplying give other last bits."""
    around = [b for top in (round_one, square) if top is not None for b in top.and_outer()]
    closed = [(b.closed_at, b.factor) for b in around if b.closed_at is not None]
    weight = 1.0
    for _, factor in sorted(closed, key=lambda pair: pair[0]):
        weight *= factor
    for bracket in around:
        if bracket.closed_at is None:
            weight *= bracket.factor
    return weight


def read_weights(text: str) -> tuple[Span, ...]:
    """Spans whose neighbours differ in weight; at least one, empty where the text says nothing.

    Raises RequestError for a weight beyond MAX_WEIGHT. Time grows with the length of the text.
    """
    words: list[tuple[str, bool, Bracket | None, Bracket | None]] = []  # text, escaped, brackets about it
    tops: dict[str, Bracket | None] = {"(": None, "[": None}
    tokens = TOKEN.findall(text)
    place = 0
    while place < len(tokens):
        token = tokens[place]
        place += 1
        if token in tops:
            tops[token] = Bracket(ROUND if token == "(" else SQUARE, tops[token])
            continue
        kind, factor = {")": "(", "]": "["}.get(token), None
        if token == ":" and (factor := factor_at(tokens, place)) is not None:
            kind = "("
        closing = tops[kind] if kind is not None else None
        if kind is not None and closing is not None:
            closing.closed_at = place
            tops[kind] = closing.outer
            if factor is not None:
                closing.factor = factor
                place += 2
            continue
        escaped = token[0] == "\\"
        words.append((token[1:] if escaped else token, escaped, tops["("], tops["["]))
    return merged(words)


def factor_at(tokens: list[str], place: int) -> float | None:
    """The number that stands at this place if a round bracket closes right behind it."""
    if place + 1 >= len(tokens) or tokens[place + 1] != ")":
        return None
    found = NUMBER.fullmatch(tokens[place])
    return float(found.group(1)) if found else None


def merged(words: list[tuple[str, bool, Bracket | None, Bracket | None]]) -> tuple[Span, ...]:
    """Words to spans: runs of one weight become one text, cut at BREAK."""
    pieces: list[Span] = []
    for text, escaped, round_one, square in words:
        weight = weight_under(round_one, square)
        if abs(weight) > MAX_WEIGHT:
            raise RequestError(
                f"the weight of {quoted(text, 40)} is {weight:g}; it must lie in "
                f"-{MAX_WEIGHT:g}..{MAX_WEIGHT:g}",
                field="prompt",
            )
        parts = [text] if escaped else BREAK.split(text)
        for index, part in enumerate(parts):
            if index > 0:
                pieces.append(Span("BREAK", weight, breaks=True))
            left = part.lstrip() if index > 0 else part
            pieces.append(Span(left.rstrip() if index < len(parts) - 1 else left, weight))
    spans: list[Span] = []
    run: list[str] = []
    for index, piece in enumerate(pieces):
        run.append(piece.text)
        after = pieces[index + 1] if index + 1 < len(pieces) else None
        if piece.breaks or after is None or after.breaks or after.weight != piece.weight:
            spans.append(Span("".join(run), piece.weight, piece.breaks))
            run = []
    return tuple(spans) or (Span(""),)
