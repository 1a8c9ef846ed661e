"""What a request's prompts say at each step of a run: joined prompts, prompts that change, a text for each
encoder. Plain text in, plain text out; `chunks.py` and `conditioning.py` go on from here.

    prompt -> tags out -> parts between AND -> texts over the steps -> spans with weights
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from minisd.errors import RequestError
from minisd.request import Request
from minisd.text.compel import read_compel
from minisd.text.composition import split_prompt
from minisd.text.editing import Clock, timetable
from minisd.text.networks import ExtraNetwork, strip_tags
from minisd.text.weights import Span, read_weights

Field = Literal["prompt", "negative_prompt", "prompt_to"]
COMMUNITY = ("minisd", "a1111", "a1111_old")  # languages with tags and with prompts that change


@dataclass(frozen=True)
class Texts:
    """What is said at one time: to the first text encoder, and to the second."""

    first: str
    second: str

    def to(self, part: str) -> str:
        return self.second if part == "text_encoder_2" else self.first


@dataclass(frozen=True)
class Line:
    """One prompt over a run: ((last step, texts), ...); the last entry ends with the run."""

    field: Field
    weight: float
    moments: tuple[tuple[int, Texts], ...]

    def at(self, step: int) -> Texts:
        """The texts of a step, counted from 1."""
        return next((texts for end, texts in self.moments if step <= end), self.moments[-1][1])


def tags_of(request: Request) -> tuple[ExtraNetwork, ...]:
    """`<lora:name:0.8>` and other tags of a request's prompt, in their order; none where the language has
    none. The negative prompt's are text, as in A1111."""
    if request.forks.prompt_language not in COMMUNITY:
        return ()
    return strip_tags(request.prompt)[1] + strip_tags(request.prompt_2 or "")[1]


def clock_of(request: Request, steps: int, earlier: int | None = None) -> Clock:
    """The clock of a pass of `steps` steps, after one of `earlier` steps if there was one."""
    return Clock(steps, earlier=earlier, old=request.forks.prompt_language == "a1111_old")


def spans_of(text: str, request: Request) -> tuple[Span, ...]:
    """A text with its weights, in the request's language."""
    language = request.forks.prompt_language
    if language == "literal":
        return (Span(text),)
    if language == "compel":
        return read_compel(text)
    spans = read_weights(text)
    if language == "minisd":
        return spans
    # A1111 takes a BREAK within brackets for a word, and what tells it apart for its weight
    return tuple(
        Span(s.text, -s.weight) if s.breaks and s.weight != 1.0 else s  # so that its pictures come out
        for s in spans
    )


def parts_of(text: str, request: Request) -> list[tuple[str, float]]:
    """The prompts that AND joins, with their weights."""
    if request.forks.composition == "literal":
        return [(text, 1.0)]
    return split_prompt(text, lone=request.forks.prompt_language in ("a1111", "a1111_old"))


def moments_of(first: str, second: str, request: Request, clock: Clock) -> tuple[tuple[int, Texts], ...]:
    """Both texts over the steps."""
    language = request.forks.prompt_language
    if language not in COMMUNITY:
        return ((clock.steps, Texts(first, second)),)
    tables = [timetable(t, clock, bars_are_text=language == "minisd") for t in dict.fromkeys((first, second))]
    if len(tables) == 1:
        return tuple((end, Texts(text, text)) for end, text in tables[0])
    ends = sorted({end for table in tables for end, _ in table})
    one, two = ([next(text for last, text in table if end <= last) for end in ends] for table in tables)
    return tuple((end, Texts(a, b)) for end, a, b in zip(ends, one, two, strict=True))


def positive_lines(
    field: Field, prompt: str, prompt_2: str | None, request: Request, clock: Clock
) -> list[Line]:
    """The lines of a prompt that may be joined by AND. A second text goes with every part, or part by part.

    Raises RequestError for a second text of another number of parts.
    """
    if request.forks.prompt_language in COMMUNITY:
        prompt, prompt_2 = strip_tags(prompt)[0], None if prompt_2 is None else strip_tags(prompt_2)[0]
    parts = parts_of(prompt, request)
    seconds = [text for text, _ in parts]
    if prompt_2 is not None:
        seconds = [text for text, _ in parts_of(prompt_2, request)]
        if len(seconds) not in (1, len(parts)):
            raise RequestError(
                f"{field} joins {len(parts)} prompts with AND and prompt_2 joins {len(seconds)}; join as "
                "many or one",
                field="prompt_2",
            )
        seconds *= len(parts) // len(seconds)
    return [
        Line(field, weight, moments_of(text, second, request, clock))
        for (text, weight), second in zip(parts, seconds, strict=True)
    ]


def lines_of(request: Request, clock: Clock) -> list[Line]:
    """The request's prompts, the negative one last."""
    lines = positive_lines("prompt", request.prompt, request.prompt_2, request, clock)
    negative, second = request.negative_prompt, request.negative_prompt_2
    moments = moments_of(negative, negative if second is None else second, request, clock)
    return [*lines, Line("negative_prompt", 1.0, moments)]


def ends_of(lines: Sequence[Line], steps: int) -> list[int]:
    """The steps after which something changes, up to the last of `steps`."""
    ends = {end for line in lines for end, _ in line.moments if end < steps}
    return [*sorted(ends), steps]
