"""Oracle: diffusers' pipelines with the same tiny weights and noise; formulas of the strength rules; and
equality of runs that must not differ."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from diffusers import (
    StableDiffusionDepth2ImgPipeline,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionInstructPix2PixPipeline,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLInpaintPipeline,
)
from PIL import Image

from minisd.errors import RequestError
from minisd.latents import encode, to_pixels
from minisd.picture import Picture
from minisd.request import Request
from minisd.samplers.names import SAMPLERS
from minisd.sampling import sigma_table
from minisd.start import drawn_latents, strength_steps
from tests.test_pipeline import close, engine, pipeline, pixels
from tests.tiny import TINY

SIZE = (64, 96)


@cache
def photo() -> Image.Image:
    """Smooth colours with some structure, RGB of SIZE."""
    y, x = np.mgrid[0 : SIZE[1], 0 : SIZE[0]]
    waves = [np.sin(x / 9.0 + y / 17.0), np.cos(x / 23.0 - y / 7.0), np.sin(x * y / 900.0)]
    return Image.fromarray((127.5 + 100 * np.stack(waves, axis=-1)).astype(np.uint8))


@cache
def square() -> Image.Image:
    """A mask whose edges lie on latents."""
    mask = np.zeros((SIZE[1], SIZE[0]), dtype=np.uint8)
    mask[16:64, 24:56] = 255
    return Image.fromarray(mask)


def request(**fields: object) -> Request:
    base = Request(
        prompt="a red apple on a table",
        negative_prompt="blurry, dark",
        image=Picture.of(photo()),
        seed=42,
        steps=6,
        sampler="ddim",
        cfg_scale=5.0,
    )
    return replace(base, **fields)  # type: ignore[arg-type]


def theirs(cls: type, name: str, asked: Request, **more: object) -> np.ndarray:
    components = dict(pipeline(name, asked.sampler).components)
    if cls is StableDiffusionDepth2ImgPipeline:
        components = {k: v for k, v in components.items() if k not in ("safety_checker", "image_encoder")}
        components |= {"depth_estimator": None, "feature_extractor": None}
    elif "XL" not in cls.__name__:
        components["requires_safety_checker"] = False
    pipe = cls(**{k: v for k, v in components.items() if not (k == "image_encoder" and "XL" in cls.__name__)})
    pipe.set_progress_bar_config(disable=True)
    if asked.strength is not None and cls is not StableDiffusionInstructPix2PixPipeline:
        more["strength"] = asked.strength
    with torch.inference_mode():
        out = pipe(
            prompt=asked.prompt,
            negative_prompt=asked.negative_prompt,
            image=photo(),
            num_inference_steps=asked.steps,
            guidance_scale=asked.cfg_scale,
            generator=torch.Generator().manual_seed(42),
            **more,
        )
    return pixels(out.images)


@pytest.mark.parametrize("sampler", ["ddim", "euler"])
@pytest.mark.parametrize("strength", [0.3, 0.75, 1.0])
@pytest.mark.parametrize("name", ["sd1", "sd2-v", "sdxl"])
def test_image_to_image(name: str, strength: float, sampler: str) -> None:
    """Oracle: StableDiffusionImg2ImgPipeline and its XL sibling."""
    cls = StableDiffusionXLImg2ImgPipeline if name == "sdxl" else StableDiffusionImg2ImgPipeline
    asked = request(strength=strength, sampler=sampler, conventions="diffusers")
    close(pixels(engine(name).run(asked).images), theirs(cls, name, asked))


@pytest.mark.parametrize("strength", [0.6, 1.0])
@pytest.mark.parametrize("name", ["sd1", "sd1-inpaint", "sdxl", "sdxl-inpaint"])
def test_inpainting(name: str, strength: float) -> None:
    """Oracle: the inpainting pipelines of SD and SDXL, with 4 and with 9 channels."""
    cls = StableDiffusionXLInpaintPipeline if "xl" in name else StableDiffusionInpaintPipeline
    asked = request(strength=strength, mask=Picture.of(square()), mask_blur=0.0, conventions="diffusers")
    wanted = theirs(cls, name, asked, mask_image=square(), width=SIZE[0], height=SIZE[1])
    close(pixels(engine(name).run(asked).images), wanted)


@pytest.mark.parametrize("scales", [(7.0, 1.5), (1.5, 1.0), (4.0, 3.0)])
def test_instruct_pix2pix(scales: tuple[float, float]) -> None:
    """Oracle: StableDiffusionInstructPix2PixPipeline."""
    asked = request(cfg_scale=scales[0], image_cfg_scale=scales[1], conventions="diffusers")
    wanted = theirs(StableDiffusionInstructPix2PixPipeline, "sd1-ip2p", asked, image_guidance_scale=scales[1])
    close(pixels(engine("sd1-ip2p").run(asked).images), wanted)


def test_depth() -> None:
    """Oracle: StableDiffusionDepth2ImgPipeline with a depth map of our own."""
    depth = np.asarray(photo().convert("L"))
    asked = request(depth=Picture.of(photo().convert("L")), strength=0.8, conventions="diffusers")
    tensor = torch.from_numpy(depth.astype(np.float32) / 255)[None]
    wanted = theirs(StableDiffusionDepth2ImgPipeline, "sd2-depth", asked, depth_map=tensor)
    close(pixels(engine("sd2-depth").run(asked).images), wanted)


def latents(name: str = "sd1", **fields: object) -> torch.Tensor:
    return engine(name).run(request(**fields)).drawing.latents


def test_strength_zero_returns_the_latents_of_the_picture() -> None:
    """Oracle: bits of the encoded picture."""
    model = engine("sd1").model
    with torch.inference_mode():
        wanted = encode(model, to_pixels(photo())) * model.config.vae.scale_factor
    assert torch.equal(latents(strength=0.0), wanted)
    assert not torch.equal(latents(strength=0.5), wanted)


@pytest.mark.parametrize("sampler", list(SAMPLERS))
def test_every_sampler_takes_a_picture(sampler: str) -> None:
    """Oracle: finite latents that depend on the picture and the strength, with the calls' levels in order."""
    low, high = (latents(sampler=sampler, strength=s, steps=4) for s in (0.5, 1.0))
    other = latents(sampler=sampler, strength=0.5, steps=4, image=Picture.of(photo().rotate(180)))
    assert torch.isfinite(low).all() and torch.isfinite(high).all()
    assert not torch.equal(low, high) and not torch.equal(low, other)


@pytest.mark.parametrize("sampler", ["dpmpp_2m", "euler_ancestral", "dpmpp_sde", "euler_cfgpp", "unipc"])
def test_a_white_mask_is_image_to_image(sampler: str) -> None:
    """Oracle: bits without a mask."""
    white = Picture.of(Image.new("L", SIZE, 255))
    plain = engine("sd1").run(request(sampler=sampler, strength=0.7))
    for more in ({}, {"mask_soft": True}, {"mask_blur": 0.0}):
        masked = engine("sd1").run(request(sampler=sampler, strength=0.7, mask=white, **more))
        assert torch.equal(masked.drawing.latents, plain.drawing.latents)
        assert masked.images[0].tobytes() == plain.images[0].tobytes()


@pytest.mark.parametrize("sampler", list(SAMPLERS))
def test_what_is_masked_out_keeps_its_latents(sampler: str) -> None:
    """Oracle: the picture's latents to rounding under every solver; elsewhere they change."""
    held = latents(strength=0.0)
    out = latents(sampler=sampler, strength=0.9, mask=Picture.of(square()))
    free = drawn_latents(square(), request(), 8) > 0
    assert (out - held)[~free.expand_as(out)].abs().max() < 1e-4 * held.abs().max()
    assert (out - held)[free.expand_as(out)].abs().max() > 0.1


@pytest.mark.parametrize("fill", ["original", "fill", "noise", "nothing"])
@pytest.mark.parametrize("area", ["whole", "masked"])
def test_pixels_outside_the_mask_are_those_of_the_picture(fill: str, area: str) -> None:
    """Oracle: bytes of the picture; inside, each fill gives a picture of its own."""
    asked = request(mask=Picture.of(square()), strength=0.8, mask_fill=fill, mask_area=area, mask_padding=8)
    out = np.asarray(engine("sd1").run(replace(asked, width=64, height=96)).images[0])
    given, outside = np.asarray(photo()), np.asarray(square()) == 0
    assert (out[outside] == given[outside]).all()
    assert (out[~outside] != given[~outside]).any()


def test_fills_differ() -> None:
    """Oracle: four pictures."""
    fills = [
        latents(mask=Picture.of(square()), mask_fill=f) for f in ("original", "fill", "noise", "nothing")
    ]
    assert all(not torch.equal(a, b) for i, a in enumerate(fills) for b in fills[:i])


def test_soft_masks_hold_each_latent_for_its_share() -> None:
    """Oracle: black stays; grey is white's run begun later: less change with less white."""
    ramp = np.repeat(np.array([0, 0, 96, 96, 160, 160, 255, 255], dtype=np.uint8), 8)[None].repeat(96, axis=0)
    soft = latents(mask=Picture.of(Image.fromarray(ramp)), mask_soft=True, strength=1.0, steps=20)
    change = (soft - latents(strength=0.0)).abs().mean(dim=(0, 1, 2))
    columns = change.view(4, 2).mean(dim=1)
    assert columns[0] < 1e-4 and columns[0] < columns[1] < columns[2] < columns[3]


def test_a_batch_is_its_pictures() -> None:
    """Oracle: bits of each seed alone, sampled latents included."""
    both = latents(count=2, strength=0.6, vae_latent="sample", mask=Picture.of(square()))
    for i in range(2):
        alone = latents(seed=42 + i, strength=0.6, vae_latent="sample", mask=Picture.of(square()))
        assert torch.equal(both[i], alone[0])


RULES = {  # rule: steps made of 20 at strengths 0.25, 0.5, 1.0, and of how long a run
    "share": [(5, 20), (10, 20), (20, 20)],
    "diffusers": [(5, 20), (10, 20), (20, 20)],
    "a1111": [(6, 20), (11, 20), (20, 20)],
    "a1111_exact": [(20, 80), (20, 40), (20, 20)],
    "sdnext": [(20, 81), (20, 41), (21, 21)],
    "sgm": [(4, 20), (9, 20), (20, 20)],
}


@pytest.mark.parametrize("rule", list(RULES))
def test_strength_rules(rule: str) -> None:
    """Oracle: a table worked out by hand from the programs' formulas; the levels are the last of the run."""
    config = TINY["sd1"]
    for strength, wanted in zip((0.25, 0.5, 1.0), RULES[rule], strict=True):
        asked = request(steps=20, strength=strength, strength_rule=rule)
        full, steps = strength_steps(sigma_table(config, asked), asked, "normal", "sd1")
        assert (steps, len(full) - 1) == wanted
        made = engine("sd1").run(request(steps=4, strength=strength, strength_rule=rule)).drawing.sigmas
        own = request(steps=4, strength=strength, strength_rule=rule)
        full, steps = strength_steps(sigma_table(config, own), own, "normal", "sd1")
        assert made == tuple(float(s) for s in full[len(full) - 1 - steps :])


def test_a_strength_that_needs_an_endless_run_is_refused() -> None:
    """Oracle: RequestError naming strength."""
    with pytest.raises(RequestError, match="more than there can be") as caught:
        engine("sd1").run(request(steps=500, strength=0.01, strength_rule="a1111_exact"))
    assert caught.value.field == "strength"


def test_two_scales_of_one_are_the_conditional_prediction() -> None:
    """Oracle: bits of cfg 1 and image scale 1 do not depend on the negative prompt; other scales do."""
    for scale, same in ((1.0, True), (2.0, False)):
        a, b = (
            latents("sd1-ip2p", cfg_scale=1.0, image_cfg_scale=scale, negative_prompt=n) for n in ("x", "y")
        )
        assert torch.equal(a, b) == same
    plain, strong = (latents("sd1-ip2p", image_cfg_scale=s) for s in (1.5, 3.0))
    assert not torch.equal(plain, strong)


def test_a_depth_map_without_a_depth_model() -> None:
    """Oracle: RequestError naming depth."""
    with pytest.raises(RequestError, match="takes no depth map"):
        engine("sd1").run(request(depth=Picture.of(photo().convert("L"))))
