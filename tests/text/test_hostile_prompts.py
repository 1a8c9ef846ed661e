"""Oracle: the number of lines executed, which must not grow faster than the prompt; 100,000 signs read."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from minisd.errors import RequestError
from minisd.text.choices import expand
from minisd.text.composition import split_prompt
from minisd.text.editing import Clock, timetable
from minisd.text.networks import strip_tags
from minisd.text.weights import MAX_NESTING, read_weights
from tests.text.operations import lines_run

CLOCK = Clock(10)
READERS: dict[str, Callable[[str], object]] = {
    "weights": read_weights,
    "editing": lambda text: timetable(text, CLOCK),
    "editing with bars": lambda text: timetable(text, CLOCK, bars_are_text=True),
    "composition": split_prompt,
    "tags": strip_tags,
    "choices": lambda text: expand(text, 1, wildcards={"a": ("b",)}),
}
PIECES = ["(", "[", "{", ")", "]", "}", "(a", "[a:", "[a|", "a:1 ", "[[a:1]:", "<a:", "<a>", "{a", "__", "_"]
PIECES += [" ", "\\", "\\(", ":", "|", "a ANDD", "BREAK ", "(a:", "1", "1.", "[a:b:", "{[", "__a", "<", "$$"]


def shapes(piece: str, n: int) -> list[str]:
    """n times a piece, alone, before something that closes, and closed as often as it is opened."""
    closing = {"(": ")", "[": "]", "{": "}", "<": ">"}
    ends = "".join(closing[c] for c in reversed(piece) if c in closing)
    return [piece * n, piece * n + ")]}>:1)", piece * n + "x" + ends * n, (piece + ends) * n]


@pytest.mark.parametrize("piece", PIECES)
@pytest.mark.parametrize("name", READERS)
def test_twice_the_length_takes_twice_the_lines(name: str, piece: str) -> None:
    """Oracle: the ratio of counts for lengths 1 : 2, at most 2.3. A reader that looks back would take 4."""
    for small, large in zip(shapes(piece, 300), shapes(piece, 600), strict=True):
        counts = []
        for text in (small, large):

            def work(text: str = text) -> None:
                try:
                    READERS[name](text)
                except RequestError:
                    pass  # too much of something, said in a sentence: found in as many lines

            counts.append(lines_run(work))
        assert counts[1] <= 2.3 * counts[0] + 50, (name, piece)


def test_the_count_finds_a_reader_that_looks_back() -> None:
    """Oracle: the inverse: MAX_NESTING makes depth harmless; without it the ratio is about 4."""
    text = "[a" * 2000
    with pytest.MonkeyPatch.context() as patch:
        few = [lines_run(lambda n=n: read_weights(text[:n])) for n in (1000, 2000)]
        patch.setattr("minisd.text.weights.MAX_NESTING", 10**6)
        many = [lines_run(lambda n=n: read_weights(text[:n])) for n in (1000, 2000)]
    assert few[1] < 2.2 * few[0] and many[1] > 3.5 * many[0]


@pytest.mark.parametrize(
    "text", ["(" * 100_000, "[a:" * 33_333, "(" * 50_000 + "x" + ")" * 50_000, "{" * 100_000]
)
def test_a_hundred_thousand_brackets(text: str) -> None:
    """Oracle: an answer, no RecursionError; the word inside has the weight of MAX_NESTING brackets."""
    for name, reader in READERS.items():
        reader(text)
        if name == "weights" and "x" in text:
            (span,) = read_weights(text)
            assert span.text == "x" and span.weight == pytest.approx(1.1**MAX_NESTING)


def test_deep_editing() -> None:
    """Oracle: written out: 10,000 edits inside one another, each switching at step 1."""
    text = "[" * 10_000 + "a" + ":b:1]" * 10_000
    assert timetable(text, CLOCK) == ((1, "a"), (10, "b"))
    with pytest.raises(RequestError, match="shorten it"):
        timetable("[a|b]" * 20_000, Clock(1000))
