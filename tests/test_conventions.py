"""Oracle: the picture with a fork's field set by name, where the convention has it otherwise. That each
convention draws what its program draws is held against diffusers in test_pipeline.py and test_start.py, and
against formulas in test_sampling.py and the tests of text."""

from __future__ import annotations

from dataclasses import fields, replace
from functools import cache

import pytest
import torch
from PIL import Image

from minisd.conventions import CONVENTIONS, Forks
from minisd.engine import Engine
from minisd.picture import Picture
from minisd.request import FORK_CHOICES, Request
from tests.test_start import photo, square
from tests.tiny import tiny_model


@cache
def engine(name: str) -> Engine:
    return Engine(tiny_model(name))


LONG = "a cat, " * 36 + "a dog"
MASKED = {"image": Picture.of(photo()), "mask": Picture.of(square()), "strength": 0.7}
SLANTED = Image.new("L", photo().size, 0)
SLANTED.paste(255, (21, 13, 50, 61))  # its edges lie inside of latents
UNEVEN = {**MASKED, "mask": Picture.of(SLANTED)}
# fork: (model, what the request must hold for the fork to be seen)
SEEN: dict[str, tuple[str, dict[str, object]]] = {
    "initial_noise": ("sd1", {}),
    "spacing": ("sd1", {}),
    "steps_offset": ("sd1", {"spacing": "leading"}),
    "interpolation": ("sd1", {"steps": 7, "spacing": "linspace"}),
    "quantised": ("sd1", {"schedule": "karras"}),
    "ddim_end": ("sd1", {"sampler": "ddim"}),
    "discard": ("sd1", {"sampler": "dpm_2"}),
    "rng": ("sd1", {}),
    "empty_negative": ("sdxl", {"negative_prompt": ""}),
    "long_prompt": ("sd1", {"prompt": LONG}),
    "chunk_padding": ("sd1", {"prompt": LONG, "long_prompt": "chunks"}),
    "composition": ("sd1", {"prompt": "a cat AND a dog"}),
    "prompt_language": ("sd1", {"prompt": "a (cat:1.4) at 12:30 (dog)1.3"}),
    "emphasis": ("sd1", {"prompt": "a (cat:1.4)", "prompt_language": "minisd"}),
    "choices": ("sd1", {"prompt": "a {cat|dog}", "prompt_language": "minisd"}),
    "strength_rule": ("sd1", {"image": MASKED["image"], "strength": 0.6, "steps": 7}),
    "vae_latent": ("sd1", {"image": MASKED["image"], "strength": 0.6}),
    "mask_cells": ("sd1", {**UNEVEN, "mask_blur": 0.0}),
    "mask_edge": ("sd1", {**UNEVEN, "mask_blur": 8.0}),
    "paste": ("sd1", {**MASKED, "mask_blur": 0.0}),
    "refiner_rule": ("sd1", {"refiner_at": 0.5, "steps": 5, "schedule": "karras"}),
}


def drawn(fork: str, **more: object) -> bytes:
    name, own = SEEN[fork]
    base: dict[str, object] = {"prompt": "a cat", "negative_prompt": "dark", "seed": 7, "steps": 4}
    base |= {"sampler": "euler", "width": 64, "height": 96}
    asked = Request.from_dict(base | own | more)
    refiner = Engine(tiny_model("sd1", seed=3)) if fork == "refiner_rule" else None
    result = engine(name).run(asked, refiner=refiner)
    assert torch.isfinite(result.drawing.latents).all()
    return result.drawing.latents.numpy().tobytes() + result.image.tobytes()


def options(fork: str) -> tuple[object, ...]:
    choices = (0, 1) if fork == "steps_offset" else FORK_CHOICES[fork]
    return tuple(c for c in choices if not (fork == "rng" and c == "cuda"))  # needs no device: see below


def test_every_fork_has_a_case() -> None:
    """Oracle: the fields of Forks; each convention of the three sets some of them."""
    assert set(SEEN) == {f.name for f in fields(Forks)}
    for name in ("a1111", "diffusers", "sgm"):
        assert sum(getattr(CONVENTIONS[name], f) != getattr(Forks(), f) for f in SEEN) >= 8


@pytest.mark.parametrize("fork", SEEN)
def test_each_fork_alone(fork: str) -> None:
    """Oracle: under minisd's own convention, a fork's choices do not all draw one picture, and naming the
    choice that is the default draws the default's."""
    pictures = {str(choice): drawn(fork, **{fork: choice}) for choice in options(fork)}
    assert len(set(pictures.values())) > 1, "no choice of this fork does anything"
    if fork not in SEEN[fork][1]:
        assert pictures[str(getattr(Forks(), fork))] == drawn(fork)


@pytest.mark.parametrize("name", ["a1111", "diffusers", "sgm"])
@pytest.mark.parametrize("fork", ["composition", "mask_edge"])  # from text; from a picture and a mask
def test_a_convention_is_its_forks_together(name: str, fork: str) -> None:
    """Oracle: minisd's own convention with every fork set by name as the convention has it; and the
    convention with all set back to ours is ours."""
    together = {f: getattr(CONVENTIONS[name], f) for f in SEEN}
    own = SEEN[fork][1]
    by_name = {f: v for f, v in together.items() if f not in own}
    assert drawn(fork, conventions=name) == drawn(fork, **by_name)
    ours = {f: getattr(Forks(), f) for f in SEEN if f not in own}
    assert drawn(fork, conventions=name, **ours) == drawn(fork)
    assert replace(CONVENTIONS[name], **{f: getattr(Forks(), f) for f in SEEN}) == Forks()
