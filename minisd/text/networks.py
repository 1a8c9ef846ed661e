"""`<lora:name:0.8>` and other `<kind:arguments>` tags of a prompt, taken out of its text into data.

The grammar is the community's: a word, a colon, anything up to `>`. Arguments are divided by colons; one that
holds `=` has a name. What a kind means is not decided here (`minisd/adapters.py`).
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from minisd.errors import RequestError, quoted

KIND = re.compile(r"<(\w+):")


@dataclass(frozen=True)
class ExtraNetwork:
    """`<lora:film:0.8:te=0.5>`: kind "lora", name "film", args ("0.8",), named (("te", "0.5"),)."""

    kind: str  # as written; compare it in lower case
    name: str  # the first argument without a name of its own, "" if there is none
    args: tuple[str, ...] = ()  # those after it
    named: tuple[tuple[str, str], ...] = ()

    def number(self, name: str, place: int, default: float) -> float:
        """The argument called `name`, or the one at `place` behind the tag's name, or the default.

        Raises RequestError for what is not a finite number.
        """
        text = dict(self.named).get(name, self.args[place] if place < len(self.args) else None)
        if text is None:
            return default
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            raise RequestError(
                f"{name} of <{self.kind}:{self.name}> is {quoted(text)}; it must be a finite number",
                field="prompt",
            )
        return value

    def __str__(self) -> str:
        """The tag as it is written; reading it gives this tag again."""
        parts = [*([self.name] if self.name else []), *self.args, *(f"{k}={v}" for k, v in self.named)]
        return f"<{self.kind}:{':'.join(parts)}>"


def read_tag(kind: str, arguments: str) -> ExtraNetwork:
    positional: list[str] = []
    named: list[tuple[str, str]] = []
    for item in arguments.split(":"):
        name, equals, value = item.partition("=")
        if equals and "=" not in value:
            named.append((name, value))
        else:
            positional.append(item)
    return ExtraNetwork(kind, positional[0] if positional else "", tuple(positional[1:]), tuple(named))


def strip_tags(prompt: str) -> tuple[str, tuple[ExtraNetwork, ...]]:
    """(the prompt without its tags, the tags in their order). Nothing takes a tag's place, so blanks about it
    stay. Time grows with the length of the prompt."""
    out: list[str] = []
    tags: list[ExtraNetwork] = []
    kept = place = 0
    end = -1  # of the first ">" at or behind `place`; looked for once
    while (place := prompt.find("<", place)) >= 0:
        if end < place:
            end = prompt.find(">", place)
        if end < 0:
            break
        head = KIND.match(prompt, place, end)
        if head is None or head.end() == end:
            place += 1
            continue
        out.append(prompt[kept:place])
        tags.append(read_tag(head.group(1), prompt[head.end() : end]))
        kept = place = end + 1
    return "".join(out) + prompt[kept:], tuple(tags)
