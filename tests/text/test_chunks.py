"""Oracle: A1111's rules written out by hand: BREAK, the comma within 20 tokens, words with vectors in one
piece."""

from __future__ import annotations

import pytest
import torch

from minisd.errors import RequestError
from minisd.text.chunks import COMMA, Chunk, cut
from minisd.text.embeddings import Embedding, Names
from minisd.text.tokenizer import decode, encode
from minisd.text.weights import Span, read_weights


def lengths(text: str, **options: bool) -> list[int]:
    return [len(c.ids) for c in cut(read_weights(text), **options).chunks]


def learned(k: int, name: str = "zebrastyle") -> Names:
    return Names([Embedding(name, {"text_encoder": torch.ones(k, 8)})])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", [0]),
        ("a cat", [2]),
        ("word " * 75, [75]),
        ("word " * 76, [75, 1]),
        ("a BREAK b", [1, 1]),
        ("BREAK", [0]),
        ("BREAK a", [0, 1]),
        ("a BREAK", [1]),
        ("word " * 54 + ", " + "more " * 30, [75, 10]),  # the comma is 21 from the end: too far
        ("word " * 55 + ", " + "more " * 30, [56, 30]),  # 20: what follows it moves on
        ("word " * 74 + ", more", [75, 1]),
        ("word " * 75 + ", more", [75, 2]),  # the comma itself has no room
    ],
)
def test_where_chunks_end(text: str, expected: list[int]) -> None:
    """Oracle: counted by hand."""
    assert lengths(text) == expected
    hard = lengths(text, commas=False)
    if "," in text:
        assert hard[:-1] == [75] * (len(hard) - 1)


def test_one_chunk_where_the_rest_is_cut_off() -> None:
    """Oracle: 75 of 100 are read."""
    made = cut([Span("word " * 100)], truncate=True)
    assert (made.counted, made.used, len(made.chunks)) == (100, 75, 1)


def test_too_many_chunks() -> None:
    """Oracle: the limit of 20."""
    assert len(cut([Span("word " * 1500)]).chunks) == 20
    with pytest.raises(RequestError, match="takes 21") as caught:
        cut(read_weights("a BREAK " * 20 + "a"), field="negative_prompt")
    assert caught.value.field == "negative_prompt"


def test_a_learned_word_stays_in_one_piece() -> None:
    """Oracle: 70 words and 8 vectors do not fit into 75."""
    made = cut([Span("word " * 70 + "zebrastyle cat", 1.2)], names=learned(8))
    assert [len(c.ids) for c in made.chunks] == [70, 9]
    assert made.counted == 79
    (item,) = made.chunks[1].learned
    assert item.place == 0 and item.embedding.length == 8
    assert made.chunks[1].runs() == [("zebrastyle", 1.2, 8), ("cat", 1.2, 1)]
    with pytest.raises(RequestError, match="76 vectors"):
        cut([Span("zebrastyle")], names=learned(76))


def test_a_learned_word_behind_the_comma_moves_with_it() -> None:
    """Oracle: the place in the next chunk, counted from the comma."""
    made = cut([Span("word " * 60 + ", new zebrastyle " + "more " * 20)], names=learned(4))
    assert [len(c.ids) for c in made.chunks] == [61, 25]
    assert [i.place for i in made.chunks[1].learned] == [1] and made.chunks[0].learned == ()


def test_a_chunk_as_its_encoder_gets_it() -> None:
    """Oracle: BOS, tokens, EOS, padding, and as many weights."""
    chunk = cut(read_weights("a (red:1.3) cat")).chunks[0]
    assert chunk.row(0) == [49406, *encode("a red cat"), 49407] + [0] * 72
    assert chunk.multipliers() == [1.0, 1.0, 1.3, 1.0] + [1.0] * 73
    assert chunk.weighted and not Chunk((1,), (1.0,)).weighted
    assert encode(",") == [COMMA] and encode("cat, ") == [*encode("cat"), COMMA]


@pytest.mark.parametrize("text", ["a red apple", "café 日本", "x ( y )", "🍎", ""])
def test_ids_say_what_they_stand_for(text: str) -> None:
    """Oracle: the text itself."""
    assert decode(encode(text)) == text
