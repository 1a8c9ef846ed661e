"""Oracle: the formulas of A1111 ("Original", "No norm") and of Compel, on random states in float64."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from minisd.errors import RequestError
from minisd.text.chunks import Chunk, cut
from minisd.text.compel import read_compel
from minisd.text.emphasis import emphasised
from minisd.text.weights import Emphasis, read_weights


def states(chunk: Chunk) -> Tensor:
    """A stand-in for an encoder: a function of the ids alone."""
    row = chunk.row(49407)
    rows = [
        torch.randn(8, generator=torch.Generator().manual_seed(i * 100 + n), dtype=torch.float64)
        for n, i in enumerate(row)
    ]
    return torch.stack(rows)[None] + 0.5


def chunk_of(text: str) -> Chunk:
    return cut(read_weights(text)).chunks[0]


@pytest.mark.parametrize("rule", ["mean", "plain", "compel", "ignore"])
def test_weights_of_one_change_nothing(rule: Emphasis) -> None:
    """Oracle: the same bits without weights; with them, not so unless they are ignored."""
    assert torch.equal(emphasised(chunk_of("a (red:1.0) cat"), states, rule), states(chunk_of("a red cat")))
    other = emphasised(chunk_of("a (red:1.4) cat"), states, rule)
    assert torch.equal(other, states(chunk_of("a red cat"))) == (rule == "ignore")


def test_mean_and_plain() -> None:
    """Oracle: z * w, and that times mean(z) / mean(z * w)."""
    chunk = chunk_of("a (red:1.4) [cat]")
    z = states(chunk)
    w = torch.ones(77, dtype=torch.float64)
    w[2], w[3] = 1.4, 1 / 1.1
    plain = z * w[:, None]
    assert (emphasised(chunk, states, "plain") - plain).abs().max() <= 1e-15
    assert (emphasised(chunk, states, "mean") - plain * (z.mean() / plain.mean())).abs().max() <= 1e-14


def test_compel() -> None:
    """Oracle: e + (z - e) w above 1; towards the prompt without the word below 1."""
    (chunk,) = cut(read_compel("a red+ cat")).chunks
    e, z = states(Chunk()), states(chunk)
    w = torch.ones(77, dtype=torch.float64)
    w[2] = 1.1
    assert (emphasised(chunk, states, "compel") - (e + (z - e) * w[:, None])).abs().max() <= 1e-14
    (chunk,) = cut(read_compel("a (red)0.5 cat")).chunks
    t = math.tan(math.pi / 4)
    expected = (states(chunk) + t * states(chunk_of("a cat"))) / (1 + t)
    assert (emphasised(chunk, states, "compel") - expected).abs().max() <= 1e-14


def test_no_mean_to_restore() -> None:
    """Oracle: states whose weighted mean is 0."""
    with pytest.raises(RequestError, match="emphasis to plain"):
        emphasised(chunk_of("(a:-76)"), lambda c: torch.ones(1, 77, 8, dtype=torch.float64), "mean")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a cat", [("a cat", 1.0)]),
        ("a red+ cat", [("a ", 1.0), ("red", 1.1), (" cat", 1.0)]),
        ("a red++, cat-", [("a ", 1.0), ("red", 1.1**2), (", ", 1.0), ("cat", 0.9)]),
        ("(red cat)1.3 here", [("red cat", 1.3), (" here", 1.0)]),
        ("(red cat+)-", [("red ", 0.9), ("cat", 0.9 * 1.1)]),
        ("t-shirt", [("t-shirt", 1.0)]),
        (r"\(a\) b\+", [("(a) b+", 1.0)]),
        ("(a", [("(a", 1.0)]),
        ("a)", [("a)", 1.0)]),
        ("", [("", 1.0)]),
    ],
)
def test_compels_grammar(text: str, expected: list[tuple[str, float]]) -> None:
    """Oracle: by hand."""
    assert [(s.text, s.weight) for s in read_compel(text)] == [
        (t, pytest.approx(w, rel=1e-15)) for t, w in expected
    ]
