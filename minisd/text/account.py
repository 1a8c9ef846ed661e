"""What became of a request's prompts: their texts over the steps, and what each chunk of 75 tokens holds.

Needs no model, only the learned words it knows; `minisd tokens` prints it and a picture's record keeps it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from minisd.errors import RequestError
from minisd.request import Request
from minisd.text.chunks import Cut, cut
from minisd.text.editing import Clock
from minisd.text.networks import ExtraNetwork
from minisd.text.script import (
    Field,
    Line,
    Texts,
    clock_of,
    lines_of,
    positive_lines,
    spans_of,
    tags_of,
)
from minisd.text.weights import Emphasis

if TYPE_CHECKING:
    from minisd.text.embeddings import Names


@dataclass(frozen=True)
class Account:
    """One prompt while it says one thing: steps begin .. end, counted from 1. second: what the second text
    encoder reads, where that is something else."""

    field: Field
    weight: float
    begin: int
    end: int
    texts: Texts
    first: Cut
    second: Cut | None = None
    region: int | None = None  # of the request's, whose prompt this is

    def to_dict(self) -> dict[str, object]:
        """Plain data: counts, and for each chunk [text, weight, tokens] of what stands together."""
        data: dict[str, object] = {
            "field": self.field,
            "steps": [self.begin, self.end],
            "text": self.texts.first,
            **counts(self.first),
        }
        if self.region is not None:
            data["region"] = self.region
        if self.weight != 1.0:
            data["weight"] = self.weight
        if self.second is not None:
            data |= {"text_2": self.texts.second, "second": counts(self.second)}
        return data

    def ids(self) -> list[list[int]]:
        """The token ids of each chunk of the first text."""
        return [list(chunk.ids) for chunk in self.first.chunks]


def counts(made: Cut) -> dict[str, object]:
    chunks = [[list(run) for run in chunk.runs()] for chunk in made.chunks]
    ids = [list(chunk.ids) for chunk in made.chunks]
    return {"tokens": made.counted, "read": made.used, "chunks": chunks, "ids": ids}


class Reader:
    """Cuts the texts of one request, each distinct one once."""

    def __init__(self, request: Request, names: Names | None = None) -> None:
        self.request = request
        self.names = names
        self._cuts: dict[str, Cut] = {}

    def cut(self, text: str, field: Field) -> Cut:
        """Raises RequestError for more than MAX_CHUNKS chunks."""
        made = self._cuts.get(text)
        if made is None:
            forks = self.request.forks
            made = self._cuts[text] = cut(
                spans_of(text, self.request),
                commas=forks.long_prompt == "commas",
                truncate=forks.long_prompt == "truncate",
                names=self.names,
                field=field,
            )
        return made

    def cuts(self, line: Line, texts: Texts) -> tuple[Cut, Cut]:
        return self.cut(texts.first, line.field), self.cut(texts.second, line.field)


def emphasis_of(request: Request) -> Emphasis:
    """The rule by which weights act: as the request says, else as its language has it."""
    rule = request.forks.emphasis
    if rule == "auto":
        return "compel" if request.forks.prompt_language == "compel" else "mean"
    return cast(Emphasis, rule)


def all_lines(request: Request, clock: Clock) -> list[Line]:
    """The lines of all prompts that are read: `prompt_to` only where the blend is above 0."""
    lines = lines_of(request, clock)
    if request.prompt_to is not None and request.prompt_blend > 0.0:
        second = positive_lines("prompt_to", request.prompt_to, None, request, clock)
        if len(second) != len(lines) - 1:
            raise RequestError(
                f"prompt joins {len(lines) - 1} prompts with AND and prompt_to joins {len(second)}; join as "
                "many",
                field="prompt_to",
            )
        lines = [*(lines[:-1] if request.prompt_blend < 1.0 else []), *second, lines[-1]]
    return lines


def accounts_of(lines: Sequence[Line], reader: Reader, steps: int) -> tuple[Account, ...]:
    """What the lines say in a run of `steps` steps."""
    accounts = []
    for line in lines:
        begin = 1
        for end, texts in line.moments:
            first, second = reader.cuts(line, texts)
            last = min(end, steps) if (end, texts) != line.moments[-1] else steps
            if begin <= last:
                other = second if texts.second != texts.first else None
                accounts.append(Account(line.field, line.weight, begin, last, texts, first, other))
            begin = end + 1
    return tuple(accounts)


def read(
    request: Request, names: Names | None = None
) -> tuple[tuple[Account, ...], tuple[ExtraNetwork, ...]]:
    """(accounts, tags) of a request without a model. Raises RequestError as drawing it would."""
    lines = all_lines(request, clock_of(request, request.steps))
    return accounts_of(lines, Reader(request, names), request.steps), tags_of(request)
