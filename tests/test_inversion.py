"""Oracle: the picture that a run began with; a solver run by hand over rising levels; bits of runs without
what must not act."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from PIL import Image

import minisd
from minisd.engine import Engine
from minisd.errors import RequestError
from minisd.events import Preview, Progress
from minisd.loras import Stages
from minisd.picture import Picture
from minisd.pipeline import denoiser_of
from minisd.request import Request
from minisd.samplers.inverse import sample_ddim_inverse
from minisd.sampling import sigma_table
from minisd.staged import encode_stages
from minisd.trail import Trail
from tests.test_pipeline import engine
from tests.test_start import photo, request
from tests.tiny import TINY


@pytest.fixture(scope="module")
def embedded() -> Engine:
    return minisd.load()


def error(embedded: Engine, picture: Picture, **fields: object) -> float:
    """Distance of a run's latents from those of the picture, relative to them."""
    base = {"prompt": "a red apple", "image": picture, "cfg_scale": 1.0, **fields}
    wanted = embedded.run(Request(image=picture, strength=0.0)).drawing.latents
    out = embedded.run(Request.from_dict(base)).drawing.latents
    return float((out - wanted).abs().mean() / wanted.abs().mean())


def test_to_noise_and_back(embedded: Engine) -> None:
    """Oracle: the latents of the picture, closer with more steps and with the solver of higher order; drawn
    noise of the same strength leads elsewhere."""
    picture = Picture.of(embedded.txt2img("a red apple", seed=7).images[0])
    same = {"inversion_prompt": "a red apple", "strength": 1.0}
    found = {
        (how, steps): error(embedded, picture, inversion=how, sampler=how, steps=steps, **same)
        for how in ("ddim", "dpmpp_2m")
        for steps in (10, 30)
    }
    assert found["dpmpp_2m", 30] < 0.02 and found["ddim", 30] < 0.08
    assert all(found[how, 30] < found[how, 10] for how in ("ddim", "dpmpp_2m"))
    assert found["dpmpp_2m", 30] < found["ddim", 30]
    assert error(embedded, picture, strength=1.0, steps=30) > 0.2


def test_the_noise_is_the_solvers_over_rising_levels() -> None:
    """Oracle: samplers.inverse over the levels, with predictions made one by one."""
    asked = request(inversion="ddim", inversion_prompt="a tree", strength=0.6, steps=4, prompt="a leaf")
    trail = Trail(keep=True)
    out = engine("sd1").run(asked, trail=trail)
    held = engine("sd1").run(request(strength=0.0)).drawing.latents
    levels = torch.tensor(out.drawing.sigmas, dtype=torch.float64).flip(0)

    def denoise(x: torch.Tensor, sigma: float) -> torch.Tensor:
        """One Euler step from sigma to 0 is the prediction itself."""
        one = replace(
            asked, inversion="no", inversion_prompt="", prompt="a tree", cfg_scale=1.0, strength=None
        )
        one = replace(one, image=None, negative_prompt="", sampler="euler", sigmas=(sigma, 0.0))
        whole = one.for_model(TINY["sd1"], 0)
        return answer(whole, x, sigma)

    wanted = sample_ddim_inverse(denoise, held, levels)
    assert (trail.kept["start"] - wanted).abs().max() < 1e-3 * wanted.abs().max()


def answer(whole: Request, x: torch.Tensor, sigma: float) -> torch.Tensor:
    """The prediction of a request's prompt for x at sigma."""
    model = engine("sd1").model
    stages = Stages(((1, model),))
    whole = replace(whole, width=x.shape[-1] * 8, height=x.shape[-2] * 8)
    table = sigma_table(model.config, whole)
    with torch.inference_mode():
        encoded = encode_stages(stages, whole, 1)
        made = denoiser_of(
            stages, whole, table, torch.tensor([sigma, 0.0]), encoded, None, lambda: None
        ).denoise()
        return made(x, sigma)


def test_seeds_do_not_matter_and_masks_do() -> None:
    """Oracle: bits: nothing is drawn; what a mask holds stays; the steps of both ways are counted."""
    asked = request(inversion="dpmpp_2m", strength=0.7, steps=4, sampler="dpmpp_2m")
    run = engine("sd1").run
    heard: list[Progress | Preview] = []
    out = run(asked, on_event=heard.append).drawing.latents
    assert torch.equal(out, run(replace(asked, seed=5)).drawing.latents)
    steps = [(e.step, e.steps) for e in heard if isinstance(e, Progress)]
    assert steps == [(i, len(steps)) for i in range(1, len(steps) + 1)]
    mask = Image.new("L", photo().size, 0)
    mask.paste(255, (0, 0, 32, 96))
    held = run(request(strength=0.0)).drawing.latents
    masked = run(replace(asked, mask=Picture.of(mask))).drawing.latents
    assert (masked - held)[..., 4:].abs().max() < 1e-4 * held.abs().max()
    assert (masked - held)[..., :4].abs().max() > 0.01
    for fields in ({"hires_scale": 1.5}, {"diffusion_tile": 64}, {"seamless": "x"}):
        assert torch.isfinite(run(replace(asked, **fields)).drawing.latents).all()
    zero = run(replace(asked, strength=0.0)).drawing.latents
    assert torch.equal(zero, held)


@pytest.mark.parametrize(
    "fields",
    [
        {"inversion_prompt": "a tree"},
        {"inversion": "ddim", "image": None, "strength": None},
        {"inversion": "ddim", "variation_strength": 0.5},
        {"inversion": "ddim", "seed_size": (64, 64)},
        {"inversion": "euler"},
    ],
)
def test_what_does_not_go_with_inversion(fields: dict[str, object]) -> None:
    """Oracle: RequestError about inversion."""
    with pytest.raises(RequestError, match="inversion"):
        request(**fields)


def test_models_that_begin_with_noise_alone() -> None:
    """Oracle: RequestError for instruct-pix2pix at strength 1; below, it draws."""
    with pytest.raises(RequestError, match="strength below 1"):
        engine("sd1-ip2p").run(request(inversion="ddim"))
    assert torch.isfinite(
        engine("sd1-ip2p").run(request(inversion="ddim", strength=0.5)).drawing.latents
    ).all()
