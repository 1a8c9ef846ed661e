"""Oracle: 71 golden cases on which transformers' CLIPTokenizer and two further implementations agreed."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import CLIPTokenizer

from minisd.text.tokenizer import BOS, EOS, chunk, encode, vocabulary

FILE = Path(__file__).parent.parent / "data" / "tokenizer_golden.json"
GOLDEN = json.loads(FILE.read_text("ascii"))["cases"]


@cache
def theirs() -> CLIPTokenizer:
    """transformers' tokenizer, from our vocabulary."""
    ids, merges = vocabulary()
    return CLIPTokenizer(vocab=ids, merges=merges)  # pyright: ignore[reportArgumentType]  # its annotation is wrong


def test_there_are_71_cases() -> None:
    """Oracle: the count in the file's origin, so that an emptied file cannot pass."""
    assert len(GOLDEN) == 71


@pytest.mark.parametrize("text,ids", GOLDEN, ids=[ascii(text)[:30] for text, _ in GOLDEN])
def test_golden(text: str, ids: list[int]) -> None:
    """Oracle: the golden ids."""
    assert encode(text) == ids


@settings(max_examples=200, deadline=None)
@given(st.text(st.characters(codec="utf-8", exclude_categories=("Cn", "Co")), max_size=40))
def test_any_text_as_transformers(text: str) -> None:
    """Oracle: transformers' CLIPTokenizer built from the same vocabulary."""
    assert encode(text) == theirs()(text, add_special_tokens=False)["input_ids"]


def test_the_vocabulary() -> None:
    """Oracle: facts of OpenAI's vocab.json and merges.txt."""
    ids, merges = vocabulary()
    assert len(ids) == 49408 and len(merges) == 48894
    assert merges[0] == ("i", "n") and merges[-1] == ("jeky", "ll</w>")
    assert ids["!"] == 0 and ids["!</w>"] == 256
    assert (ids["<|startoftext|>"], ids["<|endoftext|>"]) == (BOS, EOS) == (49406, 49407)
    assert sorted(ids.values()) == list(range(49408))


def test_lone_surrogates_become_question_marks() -> None:
    """Oracle: the ids of the text with question marks."""
    assert encode("a \ud800cat\udfff") == encode("a ?cat?")


@pytest.mark.parametrize("pad_id", [EOS, 0])
@pytest.mark.parametrize("length", [0, 1, 74, 75])
def test_one_context_is_padded_to_77(length: int, pad_id: int) -> None:
    """Oracle: the layout BOS, prompt, EOS, padding."""
    ids = list(range(1000, 1000 + length))
    (row,) = chunk(ids, pad_id)
    assert row == [BOS, *ids, EOS] + [pad_id] * (75 - length)
    assert len(row) == 77


def test_what_is_too_long_is_cut_or_goes_on_in_further_contexts() -> None:
    """Oracle: the layout, written out."""
    ids = list(range(1000, 1160))
    assert chunk(ids, EOS) == [[BOS, *ids[:75], EOS]]
    rows = chunk(ids, 0, chunks=3)
    assert rows == [
        [BOS, *ids[:75], EOS],
        [BOS, *ids[75:150], EOS],
        [BOS, *ids[150:], EOS] + [0] * 65,
    ]
    assert chunk([], 0, chunks=2) == [[BOS, EOS] + [0] * 75] * 2


@pytest.mark.parametrize("prompt", ["", "a cat", "one two three " * 40])
def test_one_context_as_transformers(prompt: str) -> None:
    """Oracle: transformers' padding="max_length", truncation=True."""
    row = theirs()(prompt, padding="max_length", truncation=True, max_length=77)["input_ids"]
    assert chunk(encode(prompt), EOS) == [row]
