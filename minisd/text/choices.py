r"""Choices by seed: `{red|blue}`, `{2$$a|b|c}`, `{3::often|rarely}`, and wildcards `__colour__` from lists.

    {a|b}              one of them         {2$$a|b|c}   two of them, joined by ", "
    {1-2$$ and $$a|b}  one or two, joined by " and "    {3::a|b}   a three times as often as b
    __name__           a line of the list of that name, or of all that `__colours/*__` fits; the line may hold
                       choices and wildcards itself
    \{ \} \_           the character itself; so is a brace that holds no choice

What is drawn is a function of the seed and of which choice of the prompt it is, counted in reading order:
other words may change and the draws stay.
"""

from __future__ import annotations

import difflib
import fnmatch
import hashlib
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from minisd.errors import RequestError, listed, quoted

MAX_DEPTH = 32  # choices in choices, lists in lists
MAX_CHARACTERS = 100_000  # of what comes out
MAX_DRAWS = 10_000
# every character belongs to one token; names are short, so that none is read twice
TOKEN = re.compile(
    r"\\.|[{}|\[\]]|__(?=[^\W_]|\*)[\w\-./*]{1,100}?(?<!_)__(?!_)|[^\\{}|\[\]_]+|_|\\", re.DOTALL
)
COUNT = re.compile(r"\s*+(\d{1,4})(?:-(\d{1,4}))?\s*+\$\$")
WEIGHT = re.compile(r"\s*+(\d{1,6}(?:\.\d{1,6})?)::")
Wildcards = Mapping[str, Sequence[str]]
Path = tuple[int, ...]  # which choice: its number in reading order, the option taken, its number in that, ...


@dataclass(frozen=True)
class Template:
    """A text with its choices found. For the token number of an opening brace, `ends` holds that of its end
    and `bars` those of the bars between its options."""

    tokens: list[str]
    ends: dict[int, int]
    bars: dict[int, list[int]]


def read_template(text: str) -> Template:
    """Choices are braces that close and hold a bar or a count. Bars inside closed [ ] belong to these. Time
    grows with the length of the text."""
    tokens = TOKEN.findall(text)
    ends: dict[int, int] = {}
    bars: dict[int, list[int]] = {}
    opened: list[tuple[int, list[int]]] = []  # token, bars directly inside
    braces = 0  # of them open
    for place, token in enumerate(tokens):
        if token in ("{", "["):
            opened.append((place, []))
            braces += token == "{"
        elif token == "|" and opened:
            opened[-1][1].append(place)
        elif token == "]" and opened and tokens[opened[-1][0]] == "[":
            opened.pop()
        elif token == "}" and braces:
            loose: list[list[int]] = []
            while tokens[opened[-1][0]] == "[":  # never closed: its bars are the brace's
                loose.append(opened.pop()[1])
            start, own = opened.pop()
            braces -= 1
            own += [bar for part in reversed(loose) for bar in part]
            if own or COUNT.match(tokens[start + 1]):
                ends[start], bars[start] = place, own
    return Template(tokens, ends, bars)


class Expansion:
    """One text on its way to having no choices left."""

    def __init__(self, seed: int, field: str, wildcards: Wildcards | None) -> None:
        self.seed = seed
        self.field = field
        self.wildcards = wildcards
        self.draws = 0
        self.characters = 0

    def fraction(self, path: Path) -> float:
        """Uniform in (0, 1), the same for the same seed, field and path everywhere."""
        self.draws += 1
        if self.draws > MAX_DRAWS:
            raise RequestError(f"the {self.field} draws more than {MAX_DRAWS:,} times", field=self.field)
        key = f"{self.seed}/{self.field}/{'/'.join(map(str, path))}".encode()
        return (int.from_bytes(hashlib.blake2b(key, digest_size=8).digest()[:6]) + 0.5) / 2**48

    def emit(self, text: str) -> str:
        self.characters += len(text)
        if self.characters > MAX_CHARACTERS:
            raise RequestError(
                f"the {self.field} grows beyond {MAX_CHARACTERS:,} characters", field=self.field
            )
        return text

    def text(self, template: Template, start: int, stop: int, path: Path, depth: int) -> str:
        """Tokens start .. stop with their choices made."""
        if depth > MAX_DEPTH:
            raise RequestError(
                f"the {self.field} nests choices or lists deeper than {MAX_DEPTH}", field=self.field
            )
        out: list[str] = []
        number, place = 0, start
        while place < stop:
            token = template.tokens[place]
            if place in template.ends:
                out.append(self.choice(template, place, (*path, number), depth))
                place, number = template.ends[place] + 1, number + 1
                continue
            if len(token) > 4 and token.startswith("__"):
                out.append(self.wildcard(token[2:-2], (*path, number), depth))
                number += 1
            else:
                out.append(self.emit(token[1:] if token in ("\\{", "\\}", "\\_") else token))
            place += 1
        return "".join(out)

    def choice(self, template: Template, brace: int, path: Path, depth: int) -> str:
        tokens, end = template.tokens, template.ends[brace]
        bounds = [brace, *template.bars[brace], end]
        least, most, joiner, cut = 1, 1, ", ", 0
        if count := COUNT.match(tokens[brace + 1]):
            least = int(count.group(1))
            most = int(count.group(2) or least)
            cut = count.end()
            if (again := tokens[brace + 1].find("$$", cut)) >= 0:
                joiner, cut = tokens[brace + 1][cut:again], again + 2
        options = len(bounds) - 1
        if not least <= most <= options:
            raise RequestError(
                f"the {self.field} asks for {least}-{most} of {options} choices in "
                f"{quoted(''.join(tokens[brace : min(end + 1, brace + 20)]), 60)}",
                field=self.field,
            )
        # one draw per option, the smallest win (Efraimidis and Spirakis 2006): new options leave the rest be
        keys: list[tuple[float, int, int]] = []
        for index in range(options):
            first = bounds[index] + 1
            skip = cut if index == 0 else 0
            weight = WEIGHT.match(tokens[first], skip) if first < bounds[index + 1] else None
            heavy = 1.0 if weight is None else float(weight.group(1))
            skip = skip if weight is None else weight.end()
            if heavy > 0:
                keys.append((-math.log(self.fraction((*path, index))) / heavy, index, skip))
        wanted = least
        if most > least:
            wanted += int(self.fraction((*path, -1)) * (most - least + 1))
        if len(keys) < wanted:
            raise RequestError(
                f"the {self.field} asks for {wanted} of {len(keys)} choices with a weight above 0",
                field=self.field,
            )
        parts = []
        for _, index, skip in sorted(keys)[:wanted]:
            first, last = bounds[index] + 1, bounds[index + 1]
            head = self.emit(tokens[first][skip:]) if skip else ""
            parts.append(head + self.text(template, first + bool(skip), last, (*path, index), depth + 1))
        return joiner.join(parts)

    def wildcard(self, name: str, path: Path, depth: int) -> str:
        if self.wildcards is None:
            raise RequestError(
                f"the {self.field} takes a line from the list {quoted(name)}, but no lists were given; "
                f"name their folder (wildcards), or set choices to literal",
                field=self.field,
            )
        names = fnmatch.filter(sorted(self.wildcards), name) if "*" in name else [name]
        if not names or names[0] not in self.wildcards:
            near = difflib.get_close_matches(name, self.wildcards, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"there are {listed(sorted(self.wildcards))}"
            raise RequestError(f"there is no list {quoted(name)} of wildcards; {hint}", field=self.field)
        lines = [line for n in names for line in self.wildcards[n]]
        if not lines:
            raise RequestError(f"the list {quoted(name)} of wildcards is empty", field=self.field)
        line = lines[int(self.fraction((*path, -2)) * len(lines))]
        template = read_template(line)
        return self.text(template, 0, len(template.tokens), (*path, -2), depth + 1)


def expand(text: str, seed: int, *, field: str = "prompt", wildcards: Wildcards | None = None) -> str:
    """`text` with every choice made by `seed`. Text without choices comes back unchanged.

    field: "prompt" and "negative_prompt" draw apart; it also names the field in errors. Raises RequestError
    for unknown and empty lists, for more choices than there are, and beyond the limits above.
    """
    template = read_template(text)
    if not template.ends and not any(len(t) > 4 and t.startswith("__") for t in template.tokens):
        return text
    return Expansion(seed, field, wildcards).text(template, 0, len(template.tokens), (), 0)
