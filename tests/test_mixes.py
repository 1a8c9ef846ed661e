"""Oracle: every pair of things that a Request can ask for: drawn, and seen in the picture, or refused in a
sentence that names both."""

from __future__ import annotations

from functools import cache
from itertools import combinations

import numpy as np
import pytest
import torch
from PIL import Image

from minisd.engine import Engine
from minisd.errors import RequestError
from minisd.picture import Picture
from minisd.region import Region
from minisd.request import Request
from minisd.result import Result
from tests.test_pipeline import engine
from tests.test_start import photo
from tests.tiny import tiny_model

SIZE = (48, 64)


def small() -> Image.Image:
    """A part of the tests' picture."""
    return photo().crop((0, 0, *SIZE))


def grey() -> Image.Image:
    """A mask in two shades, both for drawing anew."""
    levels = np.zeros((SIZE[1], SIZE[0]), dtype=np.uint8)
    levels[16:48, 8:24], levels[16:48, 24:40] = 255, 160
    return Image.fromarray(levels)


IMAGE = {"image": Picture.of(small()), "strength": 0.7}
MASK = {**IMAGE, "mask": Picture.of(grey())}
WAYS: dict[str, dict[str, object]] = {  # by the field that must be named where it does not go with another
    "image": IMAGE,
    "mask": MASK,
    "mask_soft": {**MASK, "mask_soft": True},
    "mask_area": {**MASK, "mask_area": "masked", "mask_padding": 0, "width": 48, "height": 48},
    "mask_fill": {**MASK, "mask_fill": "noise"},
    "outpaint": {**IMAGE, "outpaint": (8, 0, 16, 0)},
    "inversion": {**IMAGE, "inversion": "dpmpp_2m", "inversion_prompt": "waves"},
    "hires_scale": {"hires_scale": 1.5},
    "refiner_at": {"refiner_at": 0.5},
    "diffusion_tile": {"diffusion_tile": 40},
    "seamless": {"seamless": "xy"},
    "regions": {"regions": (Region("a green leaf", (0.0, 0.0, 0.6, 1.0)),)},
    "prompt_to": {"prompt_to": "a chair", "prompt_blend": 0.4},
    "AND": {"prompt": "a red apple AND a cup :0.7"},
    "variation_strength": {"variation_strength": 0.4, "variation_seed": 9},
    "seed_size": {"seed_size": (32, 32)},
    "freeu": {"freeu": (1.3, 1.4, 0.9, 0.2)},
    "apg_momentum": {"apg_momentum": -0.5, "apg_norm": 1.0},
    "token_merging": {"token_merging": 0.5, "hypertile": 32},
    "deep_cache": {"deep_cache": 2},
    "cfg_scale": {"cfg_scale": 1.0},
    "sampler": {"sampler": "euler_ancestral"},
    "conventions": {"conventions": "a1111"},
}
INSIDE = {("mask", "mask_soft"), ("mask", "mask_area"), ("mask", "mask_fill")} | {
    ("image", n) for n in ("mask", "mask_soft", "mask_area", "mask_fill", "outpaint", "inversion")
}  # the second has the first in it
ALIKE = {("apg_momentum", "cfg_scale")}  # at scale 1 nothing is guided


@cache
def other() -> Engine:
    return Engine(tiny_model("sd1", seed=3))


def asked(*names: str, **more: object) -> Request:
    fields: dict[str, object] = {"prompt": "a red apple", "negative_prompt": "dark", "seed": 5, "steps": 3}
    for name in names:
        fields |= WAYS[name]
    if "image" not in fields and "image" not in more:
        fields |= {"width": SIZE[0], "height": SIZE[1]}
    return Request(**{**fields, **more})  # type: ignore[arg-type]


def drawn(*names: str, model: str = "sd1", **more: object) -> Result:
    request = asked(*names, **more)
    return engine(model).run(request, refiner=other() if request.refiner_at is not None else None)


@cache
def single(name: str) -> bytes:
    return drawn(name).images[0].tobytes()


def seen(model: str) -> dict[str, object]:
    """What a model that sees a picture cannot draw without."""
    depth = {"depth": Picture.of(small().convert("L"))} if model == "sd2-depth" else {}
    return {"image": Picture.of(small()), "strength": 0.7, **depth}


@cache
def plain(model: str) -> bytes:
    return drawn(model=model, **seen(model)).images[0].tobytes()


def named(name: str, error: RequestError) -> bool:
    """By itself, or by the mask that it is about."""
    return name in str(error) or (name.startswith("mask_") and "mask" in str(error))


@pytest.mark.parametrize("first", list(WAYS)[:-1])
def test_every_pair(first: str) -> None:
    """Oracle: finite latents and a picture that neither of the two gives alone; or both names."""
    for second in list(WAYS)[list(WAYS).index(first) + 1 :]:
        if (first, second) in INSIDE:
            assert asked(first, second) == asked(second)
            continue
        try:
            out = drawn(first, second)
        except RequestError as error:
            assert named(first, error) and named(second, error), f"{first}, {second}: {error}"
            continue
        assert torch.isfinite(out.drawing.latents).all(), (first, second)
        made = out.images[0].tobytes()
        same = [n for n in (first, second) if made == single(n)]
        assert same == ([second] if (first, second) in ALIKE else []), (first, second)


def test_how_many_pairs_are_refused() -> None:
    """Oracle: counted by hand: hires with what keeps a part of a picture (5), inversion with other noise (3),
    regions with a part of the picture (1)."""
    refused = set()
    for pair in combinations(WAYS, 2):
        try:
            fields: dict[str, object] = {}
            for name in pair:
                fields |= WAYS[name]
            Request(**fields)  # type: ignore[arg-type]
        except RequestError:
            refused.add(pair)
    assert refused == {
        *((n, "hires_scale") for n in ("mask", "mask_soft", "mask_area", "mask_fill", "outpaint")),
        ("mask_fill", "inversion"),
        ("inversion", "variation_strength"),
        ("inversion", "seed_size"),
        ("mask_area", "regions"),
    }


@pytest.mark.parametrize("name", list(WAYS))
@pytest.mark.parametrize("model", ["sd1-inpaint", "sd1-ip2p", "sd2-depth"])
def test_models_that_see_a_picture(model: str, name: str) -> None:
    """Oracle: finite latents that the way changes; or a sentence that names it and the model."""
    if "refiner_at" in WAYS[name]:
        with pytest.raises(RequestError, match="refiner"):
            drawn(name, model=model, **seen(model))
        return
    try:
        out = drawn(name, model=model, **seen(model))
    except RequestError as error:
        assert named(name, error) and model in str(error), str(error)
        return
    assert torch.isfinite(out.drawing.latents).all()
    if name != "image":
        assert out.images[0].tobytes() != plain(model)
