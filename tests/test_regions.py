"""Oracle: bits of runs without regions; the formula of the mixture, worked out with the network's own
predictions; shares by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from minisd.areas import covered, shares_of
from minisd.cli import main
from minisd.engine import Engine
from minisd.errors import RequestError
from minisd.picture import Picture
from minisd.region import Region
from minisd.request import Request
from tests.test_pipeline import engine
from tests.tiny import TINY, tiny_model, write_checkpoint

LEFT, RIGHT = (0.0, 0.0, 0.5, 1.0), (0.5, 0.0, 1.0, 1.0)


def request(**fields: object) -> Request:
    base = Request(prompt="a table", negative_prompt="blurry", width=64, height=96, seed=42, steps=3)
    return replace(base, **fields)  # type: ignore[arg-type]


def latents(name: str = "sd1", refiner: Engine | None = None, **fields: object) -> torch.Tensor:
    return engine(name).run(request(**fields), refiner=refiner).drawing.latents


@pytest.mark.parametrize("sampler", ["dpmpp_2m", "euler_cfgpp", "euler_ancestral"])
@pytest.mark.parametrize("name", ["sd1", "sdxl"])
def test_one_region_over_everything_is_no_regions(name: str, sampler: str) -> None:
    """Oracle: bits of a run with the region's prompt, an edited and a joined one among them."""
    for prompt in ("a red apple", "a [red:green:0.5] apple", "an apple AND a leaf :0.5"):
        whole = Region(prompt, (0.0, 0.0, 1.0, 1.0))
        out = latents(name, sampler=sampler, regions=(whole,))
        assert torch.equal(out, latents(name, sampler=sampler, prompt=prompt))
    assert not torch.equal(out, latents(name, sampler=sampler))


def test_a_region_that_says_the_same_changes_next_to_nothing() -> None:
    """Oracle: the run without it, to rounding; another prompt is seen."""
    plain = latents()
    assert (latents(regions=(Region("a table", LEFT),)) - plain).abs().max() < 1e-3
    assert (latents(regions=(Region("a red apple", LEFT),)) - plain).abs().max() > 0.05


def test_the_mixture_of_one_step() -> None:
    """Oracle: denoised = sum of share * denoised of each prompt: an Euler step to 0 gives it itself."""
    alone = [latents(steps=1, sampler="euler", prompt=p) for p in ("a table", "a red apple", "a green leaf")]
    box = (0.25, 0.25, 1.0, 1.0)
    regions = (Region("a red apple", LEFT, weight=0.75), Region("a green leaf", box))
    out = latents(steps=1, sampler="euler", regions=regions)
    shares = shares_of(regions, 12, 8, torch.zeros(1))
    wanted = sum(share * one for share, one in zip(shares, alone, strict=True))
    assert (out - wanted).abs().max() < 1e-3


def test_shares() -> None:
    """Oracle: worked out by hand: parts of latents, overlaps, weights; they add up to 1."""
    third = covered(Region("a", (0.0, 0.0, 1 / 3, 0.5)), 2, 4)
    assert (third - torch.tensor([[1.0, 1 / 3, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]])).abs().max() < 1e-6
    mask = Image.fromarray(np.array([[255, 0], [51, 255]], dtype=np.uint8))
    by_mask = covered(Region("a", mask=Picture.of(mask)), 2, 2)
    assert torch.equal(by_mask, torch.tensor([[1.0, 0.0], [0.2, 1.0]]))
    regions = Region("a", LEFT), Region("b", (0.25, 0.0, 1.0, 1.0), weight=0.5)
    base, one, two = shares_of(regions, 1, 4, torch.zeros(1))
    assert torch.allclose(one[0, 0, 0], torch.tensor([1.0, 2 / 3, 0.0, 0.0]))
    assert torch.allclose(two[0, 0, 0], torch.tensor([0.0, 1 / 3, 0.5, 0.5]))
    assert torch.allclose(base + one + two, torch.ones(1))


def test_each_tile_sees_its_own_regions() -> None:
    """Oracle: bits of the tiles that do not reach another region."""
    fields = {"width": 192, "height": 64, "steps": 1, "sampler": "euler", "diffusion_tile": 64}
    a, b = (latents(**fields, regions=(Region(p, (0.75, 0.0, 1.0, 1.0)),)) for p in ("a red apple", "a leaf"))
    assert torch.equal(a[..., :12], b[..., :12])
    assert not torch.equal(a[..., 18:], b[..., 18:])


def test_regions_with_everything_else() -> None:
    """Oracle: bits of a batch's pictures alone; finite latents that regions change, in every kind of run."""
    regions = (Region("a red apple", LEFT), Region("a [cat|dog]", RIGHT, weight=0.5))
    both = latents(count=2, regions=regions)
    assert torch.equal(both[1], latents(seed=43, regions=regions)[0])
    for fields in (
        {"hires_scale": 1.5},
        {"pag_scale": 2.0},
        {"prompt_to": "a chair"},
        {"seamless": "xy"},
        {"image": Picture.of(Image.new("RGB", (64, 96), (90, 150, 40)))},
    ):
        out = latents(**fields, regions=regions)
        assert torch.isfinite(out).all() and not torch.equal(out, latents(**fields))
    other = Engine(tiny_model("sd1", seed=3))
    assert torch.equal(
        latents(regions=regions, refiner=engine("sd1"), refiner_at=0.5), latents(regions=regions)
    )
    assert torch.equal(
        latents(regions=regions, refiner=other, refiner_at=0.0),
        other.run(request(regions=regions)).drawing.latents,
    )


def test_accounts_and_choices_of_regions() -> None:
    """Oracle: the tokens of a region's own text; {a|b} drawn by seed and written out."""
    out = engine("sd1").run(request(regions=(Region("a {red|red} apple", LEFT),), steps=1))
    (account,) = [a for a in out.drawing.accounts if a.region == 0]
    assert account.texts.first == "a red apple" and account.first.counted == 3
    assert out.drawing.requests[0].regions[0].prompt == "a red apple"
    record = Request.from_dict(out.drawing.requests[0].to_dict())
    assert record == out.drawing.requests[0]


@pytest.mark.parametrize(
    "value",
    [
        {"prompt": "a"},
        {"prompt": "a", "box": (0, 0, 1, 1), "mask": Image.new("L", (8, 8))},
        {"prompt": "a", "box": (0.5, 0, 0.5, 1)},
        {"prompt": "a", "box": (0, 0, 2, 1)},
        {"prompt": "a", "box": (0, 0, 1, 1), "weight": 0.0},
        {"prompt": 3, "box": (0, 0, 1, 1)},
        {"box": (0, 0, 1, 1)},
        {"prompt": "a", "box": (0, 0, 1, 1), "color": 1},
        "a red apple",
        "no-such-mask.png: a",
        7,
    ],
)
def test_wrong_regions(value: object) -> None:
    """Oracle: RequestError naming regions."""
    with pytest.raises(RequestError) as caught:
        Request.from_dict({"prompt": "a", "regions": [value]})
    assert caught.value.field == "regions"


def test_regions_and_what_does_not_go_with_them() -> None:
    """Oracle: RequestError that says why."""
    with pytest.raises(RequestError, match="whole picture"):
        latents(regions=(Region("a <lora:x:1>", LEFT),))
    white = Picture.of(Image.new("L", (64, 96), 255))
    image = Picture.of(Image.new("RGB", (64, 96)))
    with pytest.raises(RequestError, match="mask_area"):
        latents(image=image, mask=white, mask_area="masked", regions=(Region("a", LEFT),))


def test_regions_by_a_flag(tmp_path: Path) -> None:
    """Oracle: pixels of the same request by the public face."""
    file = write_checkpoint(tmp_path / "m.safetensors", TINY["sd1"])
    Image.new("L", (64, 64), 255).save(tmp_path / "mask.png")
    flags = ["--region", "0,0,0.5,1: a red apple, small", "--region", f"{tmp_path / 'mask.png'}@0.5: a leaf"]
    args = ["txt2img", "a table", "--steps", "2", "--seed", "7", "-q", "-m", str(file), *flags]
    assert main([*args, "-o", str(tmp_path / "a.png")]) == 0
    white = Picture.of(Image.new("L", (64, 64), 255))
    regions = (Region("a red apple, small", LEFT), Region("a leaf", mask=white, weight=0.5))
    wanted = engine("sd1").run(Request(prompt="a table", steps=2, seed=7, regions=regions))
    assert Image.open(tmp_path / "a.png").tobytes() == wanted.images[0].tobytes()
