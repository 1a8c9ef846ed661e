"""Oracle: the fault table's rows F14 to F21: what is refused, with field and range; what is drawn."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from minisd import Engine, Request, RequestError, load
from minisd.cli import main
from minisd.picture import digest
from minisd.samplers.names import SAMPLERS
from minisd.strict_json import read_object
from tests.tiny import TINY, write_checkpoint

GOOD: dict[str, object] = {"prompt": "a", "seed": 1, "steps": 1, "width": 64, "height": 64}
RANGE = {
    "steps": "1..1000",
    "width": "8..8192",
    "seed": "0..18446744073709551615",
    "cfg_scale": "0.0..1000.0",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("faults")


@pytest.fixture(scope="module")
def engine(folder: Path) -> Engine:
    return load(write_checkpoint(folder / "sd1.safetensors", TINY["sd1"]))


@pytest.mark.parametrize(
    "field,value",
    [
        *(("steps", v) for v in (0, -1, 10**9, math.nan, "20", 1.5, True)),  # F14
        *(("width", v) for v in (0, 10**6)),  # F15
        *(("seed", v) for v in (2**64, 1.5, -2, "7")),  # F16
        *(("cfg_scale", v) for v in (math.nan, math.inf, 1e9, -1.0)),  # F17
    ],
)
def test_the_field_and_its_range_are_named(engine: Engine, field: str, value: object) -> None:
    """F14 to F17. Oracle: the range; afterwards the engine draws as before."""
    with pytest.raises(RequestError) as caught:
        engine.run(Request.from_dict(GOOD | {field: value}))
    assert caught.value.field == field and RANGE[field] in str(caught.value)


def test_sizes_are_never_rounded(engine: Engine) -> None:
    """F15. Oracle: the size that was asked for, or a refusal that names the nearest; the cap on pixels."""
    with pytest.raises(RequestError, match="width 513 is not a multiple of 8; try 512"):
        Request.from_dict(GOOD | {"width": 513})
    with pytest.raises(RequestError, match="more than 16,777,216 pixels"):
        Request.from_dict(GOOD | {"width": 8192, "height": 8192})
    with load() as embedded:  # the smallest size there is needs more than one channel in a group
        for drawer, width, height in ((embedded, 8, 8), (engine, 72, 64), (engine, 64, 136)):
            image = drawer.run(Request.from_dict(GOOD | {"width": width, "height": height})).image
            assert image.size == (width, height)


def test_a_seed_that_is_missing_is_drawn_and_told(engine: Engine) -> None:
    """F16. Oracle: the picture of the seed that was told; -1 is the community's word for it."""
    seeds = []
    for seed in (None, -1, -1):
        result = engine.run(Request.from_dict(GOOD | {"seed": seed}))
        told = result.request.seed
        assert told is not None and f"Seed: {told}," in result.parameters()
        again = engine.run(Request.from_dict(GOOD | {"seed": told}))
        assert digest(again.image) == digest(result.image)
        seeds.append(told)
    assert len(set(seeds)) == 3
    assert Request(variation_seed=-1, variation_strength=0.5).variation_seed is None


@pytest.mark.parametrize("text", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_json_knows_no_such_number(text: str) -> None:
    """F17. Oracle: RFC 8259 has none of them."""
    with pytest.raises(RequestError, match="number"):
        read_object(f'{{"cfg_scale": {text}}}'.encode())


@pytest.mark.parametrize(
    "field,value,near",
    [
        ("stpes", 3, "steps"),
        ("sampler", "eulr_a", "euler"),
        ("sampler", "DPM++ 2N", "dpmpp_2m"),
        ("schedule", "karas", "karras"),
        ("negative_promt", "", "negative_prompt"),
    ],
)
def test_the_nearest_name_is_told(field: str, value: object, near: str) -> None:
    """F18. Oracle: the name that was meant."""
    with pytest.raises(RequestError, match=near) as caught:
        Request.from_dict(GOOD | {field: value})
    assert caught.value.field == field


@pytest.mark.parametrize(
    "prompt,tokens",
    [
        ("", 0),
        ("   ", 0),
        ("\ud800 cat", 2),
        ("\x00a\x00", 3),
        ("\u202etupp \u05ea\u05e4\u05d5\u05d7", None),
        ("(" * 5000 + "x" + ")" * 5000, 1),
        ("(" * 5000 + "x", 1),
        (")" * 5000, None),
        ("[" * 70 + ")]}>((", None),
    ],
    ids=range(9),
)
def test_any_text_is_a_prompt(engine: Engine, folder: Path, prompt: str, tokens: int | None) -> None:
    """F19. Oracle: a picture, twice the same, kept and read back; or too many tokens, said in a sentence."""
    request = Request.from_dict(GOOD | {"prompt": prompt})
    try:
        result = engine.run(request)
    except RequestError as error:
        assert tokens is None and "tokens; at most" in str(error) and error.field == "prompt"
        return
    assert tokens is None or result.drawing.tokens == (tokens, tokens)
    (path,) = result.save(folder / "prompt.png")
    from minisd.verify import verify

    assert verify(path, engine).verdict == "proven"


def test_ten_megabytes_are_refused_at_once() -> None:
    """F19. Oracle: the length and the limit, before anything reads the text."""
    with pytest.raises(RequestError, match="10,000,000 characters; at most 100,000 are read"):
        Request(prompt="a" * 10_000_000)


@pytest.mark.parametrize("sampler", sorted(SAMPLERS))
def test_every_sampler_with_one_step(engine: Engine, sampler: str) -> None:
    """F20. Oracle: a picture with more than one colour: a schedule of one step is no special case."""
    image = engine.run(Request.from_dict(GOOD | {"sampler": sampler})).image
    assert np.asarray(image).std() > 1


@pytest.mark.parametrize("name,field", [("sd1-ip2p", "image"), ("sd2-depth", "depth")])
def test_what_a_model_cannot_do_without(folder: Path, name: str, field: str) -> None:
    """F20. Oracle: the field that is missing."""
    special = load(write_checkpoint(folder / f"{name}.safetensors", TINY[name]))
    with pytest.raises(RequestError, match="give|needs") as caught:
        special.run(Request.from_dict(GOOD))
    assert caught.value.field == field


def test_an_inpainting_model_without_a_mask_draws_everything(folder: Path) -> None:
    """F20, defined: as with a picture that is masked whole and starts from noise alone."""
    special = load(write_checkpoint(folder / "inpaint.safetensors", TINY["sd1-inpaint"]))
    first = special.run(Request.from_dict(GOOD)).image
    assert digest(first) == digest(special.run(Request.from_dict(GOOD)).image)
    assert np.asarray(first).std() > 1
    with pytest.raises(RequestError, match="no field 'prediction'"):
        Request.from_dict(GOOD | {"prediction": "v"})  # what a model predicts is the file's to say


@pytest.mark.parametrize("count", [0, 10**6, -1, 1.0])
def test_counts(count: object) -> None:
    """F21. Oracle: the field; queues have budgets of their own."""
    with pytest.raises(RequestError) as caught:
        Request.from_dict(GOOD | {"count": count})
    assert caught.value.field == "count" and "1..1000" in str(caught.value)


def test_the_command_says_the_same(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """F14, F18. Oracle: exit code 2 and one line, before a model is loaded."""
    for flags in (["--steps", "1000000000"], ["--sampler", "eulr"], ["--width", "513"]):
        assert main(["txt2img", "a", "-m", str(folder / "none"), "-o", str(folder / "a.png"), *flags]) == 2
        assert capsys.readouterr().err.count("\n") == 1
