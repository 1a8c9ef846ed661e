"""Oracle: the picture that something else must give, too: two roads to the same bits, and where they part.

Others of this kind lie with what they are about: masks and strength 0 in test_start, weights of 1 in
text/test_timeline, refiners and tiles in test_passes, shifted noise in test_seamless, grids in test_grid.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import permutations

import pytest
import torch
from PIL import Image

from minisd.first_noise import first_noise
from minisd.picture import Picture
from minisd.request import Request
from minisd.samplers.ode import sample_euler
from minisd.samplers.scaling import c_in, denoised_from
from minisd.sampling import sigma_table
from minisd.text.conditioning import encode_request
from tests.test_pipeline import engine
from tests.test_start import photo

PROMPTS = ("a red apple", "a green chair, in a room with a window", "")


def request(**fields: object) -> Request:
    base = Request(prompt=PROMPTS[0], negative_prompt="blurry", width=64, height=96, seed=42, steps=3)
    return replace(base, **fields)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["sd1", "sd2-v", "sdxl"])
def test_guidance_of_one_is_the_conditional_prediction_alone(name: str) -> None:
    """Oracle: Euler's method over the raw network, which never sees the negative prompt."""
    model = engine(name).model
    out = engine(name).run(request(sampler="euler", cfg_scale=1.0)).drawing
    asked, table = out.request, sigma_table(model.config, out.request)
    with torch.inference_mode():
        cond = encode_request(model, asked, 3).timeline[0][1].conds[0][0]

        def denoise(x: torch.Tensor, sigma: float) -> torch.Tensor:
            kind = model.config.prediction
            t = torch.tensor([table.told(sigma)], dtype=torch.float32)
            return denoised_from(model.unet(x * c_in(sigma, kind), t, cond.context, cond.y), x, sigma, kind)

        sigmas = torch.tensor(out.sigmas, dtype=torch.float64)
        x = first_noise(asked, (4, 12, 8)) * (1 + out.sigmas[0] ** 2) ** 0.5
        wanted = sample_euler(denoise, x.float(), sigmas)
    assert torch.equal(out.latents, wanted)
    assert not torch.equal(engine(name).run(request(sampler="euler", cfg_scale=1.5)).drawing.latents, wanted)


def test_permuted_prompts_are_permuted_pictures() -> None:
    """Oracle: each prompt's picture by a fresh request; in any order, one after the other on one engine."""
    wanted = {p: engine("sd1").run(request(prompt=p)).images[0].tobytes() for p in PROMPTS}
    assert len(set(wanted.values())) == 3
    for order in (PROMPTS[::-1], PROMPTS[1:] + PROMPTS[:1]):
        made = [engine("sd1").run(request(prompt=p)).images[0].tobytes() for p in order]
        assert made == [wanted[p] for p in order]


@pytest.mark.parametrize("name", ["sd1", "sdxl"])
def test_permuted_contexts_of_one_call_are_permuted_answers(name: str) -> None:
    """Oracle: the network's answers to other pictures, levels and prompts at once, against each alone."""
    model = engine(name).model
    with torch.inference_mode():
        asked = [request(prompt=p).for_model(model.config, seed=0) for p in PROMPTS]
        conds = [encode_request(model, a, 3).timeline[0][1].conds[0][0] for a in asked]
        x = torch.randn(3, 4, 12, 8, generator=torch.Generator().manual_seed(1))
        t = torch.tensor([900.0, 500.0, 20.0])
        rows = [model.unet(x[i : i + 1], t[i : i + 1], c.context, c.y) for i, c in enumerate(conds)]
        for order in permutations(range(3)):
            y = None if conds[0].y is None else torch.cat([conds[i].y for i in order])
            context = torch.cat([conds[i].context for i in order])
            out = model.unet(x[list(order)], t[list(order)], context, y)
            assert torch.equal(out, torch.cat([rows[i] for i in order])), order


def test_only_masked_is_the_part_alone() -> None:
    """Oracle: image to image of the part cut out by hand, laid back; nothing else of the picture is seen."""
    mask = Image.new("L", photo().size)
    mask.paste(255, (0, 24, 64, 72))
    common = {"strength": 0.7, "width": 64, "height": 48}
    part = engine("sd1").run(request(image=Picture.of(photo().crop((0, 24, 64, 72))), **common))
    area = {"mask": Picture.of(mask), "mask_area": "masked", "mask_padding": 0, "mask_blur": 0.0}
    whole = engine("sd1").run(request(image=Picture.of(photo()), **area, **common))
    assert torch.equal(whole.drawing.latents, part.drawing.latents)
    wanted = photo().copy()
    wanted.paste(part.images[0], (0, 24))
    assert whole.images[0].tobytes() == wanted.tobytes()
    wider = engine("sd1").run(request(image=Picture.of(photo()), **{**area, "mask_padding": 8}, **common))
    assert not torch.equal(wider.drawing.latents, part.drawing.latents)


@pytest.mark.parametrize(
    ("convention", "rule", "steps"),
    [
        ("minisd", "share", 5),
        ("diffusers", "diffusers", 5),
        ("a1111", "a1111", 6),
        ("sgm", "sgm", 4),
    ],
)
def test_conventions_count_the_steps_of_a_strength(convention: str, rule: str, steps: int) -> None:
    """Oracle: steps by hand, of 20 at strength 0.25; the same as by the rule's own name."""
    asked = request(image=Picture.of(photo()), strength=0.25, steps=20, cfg_scale=1.0, conventions=convention)
    out = engine("sd1").run(asked).drawing
    assert len(out.sigmas) - 1 == steps and out.request.forks.strength_rule == rule
    named = engine("sd1").run(replace(asked, strength_rule=rule)).drawing
    assert torch.equal(named.latents, out.latents)


@pytest.mark.parametrize(
    ("fields", "steps"),
    [({"conventions": "a1111"}, 6), ({"strength_rule": "sdnext"}, 6), ({"conventions": "diffusers"}, 3)],
)
def test_conventions_count_the_steps_of_a_second_pass(fields: dict[str, object], steps: int) -> None:
    """Oracle: by hand, 6 steps at strength 0.5: A1111 and SD.Next make all of them, diffusers half."""
    heard: list[object] = []
    asked = request(hires_scale=1.5, hires_strength=0.5, hires_steps=6, cfg_scale=1.0, **fields)
    engine("sd1").run(asked, on_event=heard.append)
    assert len(heard) == 3 + steps
