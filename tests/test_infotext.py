"""Oracle: what was written, under Hypothesis; texts that A1111-family tools write; A1111's own grammar."""

from __future__ import annotations

import re
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minisd.errors import RequestError
from minisd.infotext import Infotext, pairs_of, parsed, quote, request_of, unquote, written
from minisd.request import Request

# a prompt's lines are stripped, as A1111 strips them; a last line that looks like settings cannot be told
LINE = st.text(st.characters(exclude_categories=["Cs", "Cc", "Zl", "Zp"], exclude_characters="\x85")).map(
    str.strip
)
PROMPT = st.lists(LINE, max_size=4).map("\n".join).map(str.strip)
KEY = st.text(string.ascii_letters + string.digits + " -/", min_size=2, max_size=20).filter(
    lambda k: k.strip() == k and k[0].isalnum() and len(k) > 1
)
VALUE = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30).filter(
    lambda v: v.strip() == v and not (v[0] == v[-1] == '"' and not any(c in v for c in ",:\n"))
)


def plain(prompt: str) -> bool:
    """Whether a prompt has no line that the grammar means otherwise."""
    lines = prompt.split("\n")
    return not any(line.startswith("Negative prompt:") for line in lines)


@given(PROMPT.filter(plain), PROMPT.filter(plain), st.dictionaries(KEY, VALUE, min_size=3, max_size=8))
def test_what_is_written_is_read(prompt: str, negative: str, settings: dict[str, str]) -> None:
    """Oracle: the parts: commas, colons, quotes, line ends, any script."""
    text = Infotext(prompt, negative, settings)
    assert parsed(written(text)) == text


@given(VALUE)
def test_quoting(value: str) -> None:
    """Oracle: the value; what is quoted is one pair of the grammar."""
    assert unquote(quote(value)) == value
    [(key, found)] = pairs_of(f"Key: {quote(value)}")
    assert key == "Key" and unquote(found.strip()) == value


@pytest.mark.parametrize(
    "value,wanted",
    [
        ("foo, bar", '"foo, bar"'),
        ("a:b", '"a:b"'),
        ('he said "hi"', 'he said "hi"'),
        ('he said "hi", ok', '"he said \\"hi\\", ok"'),
        ("日本,語", '"日本,語"'),
    ],
)
def test_vectors_of_the_quote_rule(value: str, wanted: str) -> None:
    """Oracle: what A1111's own function gave."""
    assert quote(value) == wanted and unquote(wanted) == value


A1111 = """a lighthouse, (storm:1.2)
second line
Negative prompt: blurry, lowres
more of it
Steps: 28, Sampler: DPM++ 2M SDE, Schedule type: Karras, CFG scale: 6.5, Seed: 123456, Size: 512x768, \
Model hash: 6ce0161689, Model: v1-5-pruned-emaonly, Variation seed: 9, Variation seed strength: 0.2, \
Clip skip: 2, ENSD: 31337, RNG: NV, Lora hashes: "film: 0123456789ab", Hires upscale: 2, Version: v1.10.1"""


def test_a_text_of_a1111() -> None:
    """Oracle: its fields by hand; what no Request holds is listed."""
    fields, left = request_of(A1111)
    request = Request.from_dict(fields)
    assert request.prompt == "a lighthouse, (storm:1.2)\nsecond line"
    assert request.negative_prompt == "blurry, lowres\nmore of it"
    assert (request.steps, request.sampler, request.schedule) == (28, "dpmpp_2m_sde", "karras")
    assert (request.cfg_scale, request.seed, request.width, request.height) == (6.5, 123456, 512, 768)
    assert (request.variation_seed, request.variation_strength, request.clip_skip) == (9, 0.2, 2)
    assert request.eta_seed_delta == 31337 and request.rng == "philox" and request.conventions == "a1111"
    assert left == ("Lora hashes: film: 0123456789ab", "Hires upscale: 2")


def test_old_texts() -> None:
    """Oracle: the schedule inside the sampler's name; no RNG is the graphics card's."""
    fields, _ = request_of("x\nSteps: 20, Sampler: DPM++ 2M Karras, CFG scale: 7, Seed: 1, Size: 512x512")
    request = Request.from_dict(fields)
    assert (request.sampler, request.schedule, request.rng) == ("dpmpp_2m", "karras", "cuda")


@pytest.mark.parametrize(
    "text,message",
    [
        ("only a prompt", "holds no settings"),
        ("", "holds no settings"),
        ("x\nSteps: many, Sampler: Euler, Seed: 1", "Steps is 'many', no number"),
    ],
)
def test_texts_that_say_nothing(text: str, message: str) -> None:
    """Oracle: RequestError."""
    with pytest.raises(RequestError, match=message):
        request_of(text)


A1111S = re.compile(r'\s*(\w[\w \-/]+):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)')


@given(st.text('ab 1-/:,"\\\t_é', max_size=60))
def test_pairs_are_those_of_the_expression(line: str) -> None:
    """Oracle: A1111's regular expression on short lines."""
    assert pairs_of(line) == A1111S.findall(line)


@given(st.text(max_size=300))
def test_any_text_is_read(text: str) -> None:
    """Oracle: no exception."""
    parsed(text)


def test_hostile_texts_take_linear_time() -> None:
    """Oracle: lengths of 10^6 of what a careless expression would stumble over are read at all."""
    for text in ('a: "' * 200_000, "a" * 1_000_000, "k: v, " * 150_000, "Negative prompt:" * 50_000):
        parsed(text)
