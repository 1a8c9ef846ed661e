"""Oracle: tables of wrong values, each with the field it must name and what the message must say."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path

import pytest

from minisd.config import SD1, SDXL
from minisd.conventions import CONVENTIONS, Forks
from minisd.errors import RequestError
from minisd.request import FORK_CHOICES, Request
from minisd.request_rules import MAX_PROMPT_CHARACTERS

WRONG: list[tuple[str, object, str]] = [  # (field, value, what the message says)
    ("prompt", None, "must be text, got NoneType"),
    ("prompt", 7, "must be text, got int"),
    ("prompt", b"a cat", "must be text, got bytes"),
    ("prompt", "a" * (MAX_PROMPT_CHARACTERS + 1), "100,001 characters; at most 100,000"),
    ("negative_prompt", ["a"], "must be text, got "),
    ("width", 500, "500 is not a multiple of 8; try 496"),
    ("width", 0, "it must lie in 8..8192"),
    ("width", -64, "it must lie in 8..8192"),
    ("width", 8200, "it must lie in 8..8192"),
    ("width", 512.0, "whole number in 8..8192, got '512.0'"),
    ("width", True, "whole number in 8..8192, got 'True'"),
    ("height", "512", "whole number in 8..8192, got \"'512'\""),
    ("height", 7, "it must lie in 8..8192"),
    ("height", 513, "513 is not a multiple of 8; try 512"),
    ("seed", -2, "it must lie in 0..18446744073709551615"),
    ("seed", 2**64, "it must lie in 0..18446744073709551615"),
    ("seed", 1.5, "whole number"),
    ("seed", False, "whole number"),
    ("count", 0, "it must lie in 1..1000"),
    ("count", 1001, "it must lie in 1..1000"),
    ("count", None, "whole number"),
    ("steps", 0, "steps is 0; it must lie in 1..1000"),
    ("steps", -1, "it must lie in 1..1000"),
    ("steps", 10**9, "it must lie in 1..1000"),
    ("steps", math.nan, "whole number in 1..1000, got 'nan'"),
    ("steps", "20", "whole number"),
    ("steps", 1.5, "whole number"),
    ("steps", True, "whole number"),
    ("cfg_scale", math.nan, "finite number in 0.0..1000.0, got 'nan'"),
    ("cfg_scale", math.inf, "finite number"),
    ("cfg_scale", -1, "it must lie in 0.0..1000.0"),
    ("cfg_scale", 1e9, "it must lie in 0.0..1000.0"),
    ("cfg_scale", 10**400, "is a number of 1,329 bits; it must lie in 0.0..1000.0"),
    ("seed", 10**5000, "is a number of 16,610 bits; it must"),
    ("cfg_scale", "7", "finite number"),
    ("cfg_scale", True, "finite number"),
    ("cfg_scale", 1j, "finite number"),
    ("cfg_rescale", 1.1, "it must lie in 0.0..1.0"),
    ("eta", -0.1, "it must lie in 0.0..1.0"),
    ("eta", math.nan, "finite number"),
    ("clip_skip", 0, "it must lie in 1..64"),
    ("clip_skip", True, "whole number"),
    ("steps_offset", -1, "it must lie in 0..1000"),
    ("aesthetic_score", 11, "it must lie in 0.0..10.0"),
    ("negative_aesthetic_score", math.nan, "finite number"),
    ("original_size", (1024,), "two whole numbers (height, width)"),
    ("original_size", (1024, 1024.0), "two whole numbers"),
    ("original_size", 1024, "two whole numbers"),
    ("crop", None, "two whole numbers"),
    ("crop", (-1, 0), "holds -1; both must lie in 0..65536"),
    ("crop", (0, 10**5000), "holds a number of 16,610 bits"),
    ("crop", (True, 0), "two whole numbers"),
    ("target_size", (10**6, 8), "holds 1000000; both must lie in 0..65536"),
    ("sampler", "eulr", "did you mean 'euler'"),
    ("sampler", "DPM++ 2N", "there is no sampler 'DPM++ 2N'; did you mean"),
    ("sampler", "", "there is no sampler"),
    ("sampler", None, "named by text, got NoneType"),
    ("sampler", 3, "named by text, got int"),
    ("schedule", "karas", "karras"),
    ("schedule", None, "schedule"),
    ("conventions", "A1111", "minisd, a1111, diffusers, sgm"),
    ("conventions", 1, "minisd, a1111, diffusers, sgm"),
    ("rng", "opencl", "philox, torch"),
    ("spacing", "even", "linspace, leading, trailing, sgm"),
    ("quantised", 1, "True, False"),
    ("quantised", "yes", "True, False"),
    ("empty_negative", "", "zeros, encode"),
    ("long_prompt", "cut", "chunks, truncate"),
]


@pytest.mark.parametrize("field,value,message", WRONG, ids=[f for f, _, _ in WRONG])
def test_wrong_values_are_named(field: str, value: object, message: str) -> None:
    """Oracle: the table: RequestError, its field, one line that begins with it and says what is right."""
    with pytest.raises(RequestError) as caught:
        Request(**{field: value})  # type: ignore[arg-type]
    said = str(caught.value)
    assert caught.value.field == field
    assert said.startswith(field) and message in said
    assert "\n" not in said and len(said) < 1200


def test_request_errors_are_value_errors_with_a_field() -> None:
    """Oracle: the class tree that callers rely on."""
    with pytest.raises(ValueError) as caught:
        Request(steps=0)
    assert isinstance(caught.value, RequestError)


def test_more_pixels_than_allowed() -> None:
    """Oracle: 8192 x 8192 has more than 4096 x 4096 pixels, though each side may be."""
    with pytest.raises(RequestError, match="more than 16,777,216 pixels") as caught:
        Request(width=8192, height=8192)
    assert caught.value.field == "width"
    assert Request(width=8192, height=2048).width == 8192


@pytest.mark.parametrize(
    "key,hint", [("stpes", "'steps'"), ("cfg_scal", "'cfg_scale'"), ("negativ_prompt", "'negative_prompt'")]
)
def test_fields_that_are_not_there(key: str, hint: str) -> None:
    """Oracle: the nearest field; the error names the key that came."""
    with pytest.raises(RequestError, match="a request has no field") as caught:
        Request.from_dict({key: 3})
    assert caught.value.field == key
    assert f"did you mean {hint}?" in str(caught.value)


def test_foreign_names_cannot_write_to_a_terminal() -> None:
    """Oracle: no control character in the message, whatever the key or value."""
    for data in (
        {"\x1b[31mred": 1},
        {"sampler": "\x1b[31mred"},
        {"rng": "\x1b]0;x\x07"},
        {"steps": "\x1b[2J"},
    ):
        with pytest.raises(RequestError) as caught:
            Request.from_dict(data)
        assert str(caught.value).isprintable()


@pytest.mark.parametrize("data", [{"width": [64]}, {"prompt": {"a": 1}}, {"crop": [0, 0, 0]}, {"steps": [1]}])
def test_json_of_the_wrong_kind(data: dict[str, object]) -> None:
    """Oracle: RequestError naming the field, for what JSON can hold."""
    with pytest.raises(RequestError) as caught:
        Request.from_dict(data)
    assert caught.value.field == next(iter(data))


def test_there_and_back_through_json() -> None:
    """Oracle: equality, of a request with every field set and of one with none."""
    full = Request(
        prompt="a cat \u00e9 \U0001f600",
        negative_prompt="blurry",
        width=512,
        height=768,
        seed=2**64 - 1,
        count=3,
        steps=7,
        sampler="ddim",
        schedule="karras",
        cfg_scale=7.5,
        cfg_rescale=0.7,
        eta=0.3,
        clip_skip=2,
        original_size=(1024, 768),
        crop=(8, 16),
        target_size=(512, 512),
        aesthetic_score=7.0,
        negative_aesthetic_score=1.0,
        conventions="a1111",
        initial_noise="variance",
        spacing="sgm",
        steps_offset=1,
        interpolation="linear",
        quantised=False,
        ddim_end="first",
        rng="torch",
        empty_negative="zeros",
        long_prompt="truncate",
    )
    for request in (full, Request()):
        assert Request.from_dict(json.loads(json.dumps(request.to_dict()))) == request
    assert "seed" not in Request().to_dict()


def test_names_and_numbers_are_brought_to_one_form() -> None:
    """Oracle: equality of requests that say the same."""
    assert Request(sampler="Euler a", cfg_scale=7) == Request(sampler="euler_ancestral", cfg_scale=7.0)
    assert Request(sampler=" EULER ").sampler == "euler"
    assert type(Request(cfg_scale=7).cfg_scale) is float


def test_what_the_model_decides() -> None:
    """Oracle: the sizes that SD1 and SDXL were trained at; what is set stays."""
    whole = Request(prompt="x").for_model(SD1, seed=9)
    assert (whole.width, whole.height, whole.seed) == (512, 512, 9)
    assert whole.original_size == whole.target_size == (512, 512)
    whole = Request(width=768, seed=3, target_size=(64, 64)).for_model(SDXL, seed=9)
    assert (whole.width, whole.height, whole.seed) == (768, 1024, 3)
    assert (whole.original_size, whole.target_size) == ((1024, 768), (64, 64))
    assert whole.for_model(SDXL, seed=1) == whole


def test_what_the_model_refuses() -> None:
    """Oracle: a clip_skip beyond the layers; a size that its autoencoder cannot halve evenly."""
    with pytest.raises(RequestError, match=r"clip_skip 13 is outside 1\.\.12") as caught:
        Request(clip_skip=13).for_model(SD1, seed=0)
    assert caught.value.field == "clip_skip"
    coarse = replace(SD1, vae=replace(SD1.vae, ch_mult=(1, 2, 2, 4, 4)))
    with pytest.raises(RequestError, match="height 520 is not a multiple of 16; try 512") as caught:
        Request(height=520).for_model(coarse, seed=0)
    assert caught.value.field == "height"


def test_seeds_of_a_batch() -> None:
    """Oracle: seed + i, and around the end."""
    assert Request(seed=5, count=3).seeds() == [5, 6, 7]
    assert Request(seed=2**64 - 1, count=2).seeds() == [2**64 - 1, 0]


def test_forks_are_the_conventions_with_those_set_alone() -> None:
    """Oracle: the table of conventions; every fork is a field of Request with its choices."""
    for name, forks in CONVENTIONS.items():
        assert Request(conventions=name).forks == forks
    assert Request(conventions="diffusers", rng="philox").forks == replace(
        CONVENTIONS["diffusers"], rng="philox"
    )
    assert Request(conventions="diffusers", steps_offset=0).forks.steps_offset == 0
    names = {f.name for f in fields(Forks)}
    assert names <= {f.name for f in fields(Request)}
    assert names - set(FORK_CHOICES) == {"steps_offset"}
    for forks in CONVENTIONS.values():
        for name, choices in FORK_CHOICES.items():
            assert getattr(forks, name) in choices


def test_surrogates_and_ten_thousand_words_are_requests() -> None:
    """Oracle: they are made, and keep their text; the tokenizer says what becomes of them."""
    for prompt in ("\ud800 cat", "word " * 10_000, "\x00", ""):
        assert Request(prompt=prompt).prompt == prompt


@pytest.mark.parametrize(
    "program",
    [
        "import minisd",
        "import minisd; minisd.Request(prompt='a cat', sampler='Euler a', steps=3).to_dict()",
        "import minisd; minisd.RequestError; minisd.CheckpointError",
        "import minisd.config, minisd.conventions, minisd.samplers.names",
    ],
)
def test_no_torch_before_it_is_needed(program: str) -> None:
    """Oracle: sys.modules of a fresh process."""
    heavy = "{'torch', 'numpy', 'PIL', 'safetensors', 'tokenizers', 'einops', 'socket', 'urllib.request'}"
    run = subprocess.run(
        [sys.executable, "-c", f"{program}\nimport sys\nprint(sorted({heavy} & set(sys.modules)))"],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("fields", "field", "words"),
    [
        ({"sampler": "heun", "eta": 0.5}, "eta", "takes no eta"),
        ({"sampler": "dpmpp_2m", "s_churn": 1.0}, "s_churn", "takes no s_churn"),
        ({"sampler": "lms", "s_noise": 1.1}, "s_noise", "takes no s_noise"),
        ({"sampler": "DPM++ 2M Karras", "schedule": "beta"}, "schedule", "say one"),
        ({"seed_size": (65536, 65536)}, "seed_size", "multiples of 8"),
        ({"seed_size": (100, 64)}, "seed_size", "multiples of 8"),
    ],
)
def test_numbers_that_would_do_nothing_are_refused(fields: dict, field: str, words: str) -> None:
    """Oracle: the field and the reason."""
    with pytest.raises(RequestError, match=words) as caught:
        Request(**fields)
    assert caught.value.field == field
