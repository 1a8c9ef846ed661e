"""Oracle: the diffusers pipelines with the same tiny weights and noise; and equality of our own runs."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    EulerDiscreteScheduler,
    SchedulerMixin,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
)
from PIL import Image
from transformers import CLIPTextModel, CLIPTokenizer

from minisd.config import TextUse
from minisd.engine import Engine
from minisd.request import Request
from minisd.text.tokenizer import vocabulary
from tests.oracles import Weights, diffusers_unet, diffusers_vae, transformers_text
from tests.tiny import TINY, network_weights, tiny_model

SCHEDULERS: dict[str, type[SchedulerMixin]] = {"euler": EulerDiscreteScheduler, "ddim": DDIMScheduler}


@cache
def engine(name: str) -> Engine:
    return Engine(tiny_model(name))


@cache
def tokenizer(pad_id: int) -> CLIPTokenizer:
    ids, merges = vocabulary()
    pad = "!" if pad_id == 0 else "<|endoftext|>"
    return CLIPTokenizer(vocab=ids, merges=merges, pad_token=pad, model_max_length=77)


def folder_encoder(use: TextUse, weights: Weights, family: str) -> CLIPTextModel:
    """As a diffusers folder has it: SD2's without the last layer and the projection."""
    if family != "sd2":
        return transformers_text(use.config, weights)
    last = use.config.layers - 1
    config = replace(use.config, layers=last, projection_dim=None)
    dropped = (f"text_model.encoder.layers.{last}.", "text_projection")
    return transformers_text(config, {k: v for k, v in weights.items() if not k.startswith(dropped)})


@cache
def pipeline(name: str, sampler: str) -> StableDiffusionPipeline | StableDiffusionXLPipeline:
    config = TINY[name]
    weights = network_weights(config, dtype=torch.float32)
    options = {} if sampler == "euler" else {"clip_sample": False, "set_alpha_to_one": False}
    scheduler = SCHEDULERS[sampler](
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        timestep_spacing="leading",
        steps_offset=1,
        prediction_type="v_prediction" if config.prediction == "v" else "epsilon",
        **options,
    )
    parts = {
        "vae": diffusers_vae(config.vae, weights["vae"]),
        "unet": diffusers_unet(config.unet, weights["unet"], sample_size=64),
        "scheduler": scheduler,
    }
    for use in config.text:
        parts[use.part] = folder_encoder(use, weights[use.part], config.family)
        parts[use.part.replace("text_encoder", "tokenizer")] = tokenizer(use.pad_id)
    if len(config.text) == 2:
        pipe = StableDiffusionXLPipeline(**parts, add_watermarker=False)
    else:
        pipe = StableDiffusionPipeline(
            **parts, safety_checker=None, feature_extractor=None, requires_safety_checker=False
        )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def pixels(images: tuple[Image.Image, ...] | list[Image.Image]) -> np.ndarray:
    """uint8 [n, h, w, 3] as signed numbers."""
    return np.stack([np.asarray(i) for i in images]).astype(int)


def theirs(name: str, request: Request, *, negative: str | None) -> np.ndarray:
    seeds = range(request.seed or 0, (request.seed or 0) + request.count)
    with torch.inference_mode():
        out = pipeline(name, request.sampler)(
            request.prompt,
            negative_prompt=negative,
            width=request.width,
            height=request.height,
            num_inference_steps=request.steps,
            guidance_scale=request.cfg_scale,
            guidance_rescale=request.cfg_rescale,
            num_images_per_prompt=request.count,
            generator=[torch.Generator().manual_seed(s) for s in seeds],
            eta=request.eta or 0.0,
        )
    return pixels(out.images)


def close(ours: np.ndarray, reference: np.ndarray) -> None:
    assert ours.shape == reference.shape
    assert np.abs(ours - reference).max() <= 1
    assert ours.std() > 10 and (ours % 255 == 0).mean() < 0.5  # a picture, not a clamped one


@pytest.mark.parametrize("cfg_scale", [1.0, 7.5])
@pytest.mark.parametrize("sampler", ["euler", "ddim"])
@pytest.mark.parametrize("name", ["sd1", "sd2-v", "sdxl"])
def test_every_pixel_within_one_level_of_diffusers(name: str, sampler: str, cfg_scale: float) -> None:
    """Oracle: StableDiffusionPipeline and StableDiffusionXLPipeline, float32, Euler and DDIM."""
    request = Request(
        prompt="a red apple on a table",
        negative_prompt="blurry, dark",
        width=64,
        height=96,
        seed=42,
        steps=6,
        sampler=sampler,
        cfg_scale=cfg_scale,
        conventions="diffusers",
    )
    ours = pixels(engine(name).run(request).images)
    close(ours, theirs(name, request, negative=request.negative_prompt))


@pytest.mark.parametrize(
    "name,prompt", [("sd1", ""), ("sd1", "one two three " * 50), ("sdxl", "Café №5 (bokeh:1.2)")]
)
def test_other_prompts_in_a_batch(name: str, prompt: str) -> None:
    """Oracle: the diffusers pipelines: empty, cut at 75 tokens, odd; two images with a generator each."""
    request = Request(
        prompt=prompt, width=64, height=64, seed=7, count=2, steps=4, sampler="ddim", conventions="diffusers"
    )
    ours = pixels(engine(name).run(request).images)
    close(ours, theirs(name, request, negative=None))
    assert np.abs(ours[0] - ours[1]).max() > 20


def test_an_empty_negative_prompt_of_sdxl_encoded() -> None:
    """Oracle: StableDiffusionXLPipeline given "" (encoded) and None (zeros)."""
    request = Request(
        prompt="a cat", width=64, height=64, seed=7, steps=4, sampler="euler", conventions="diffusers"
    )
    zeros = pixels(engine("sdxl").run(request).images)
    close(zeros, theirs("sdxl", request, negative=None))
    encoded = pixels(engine("sdxl").run(replace(request, empty_negative="encode")).images)
    close(encoded, theirs("sdxl", request, negative=""))
    assert np.abs(zeros - encoded).max() > 1


def test_guidance_rescale() -> None:
    """Oracle: StableDiffusionPipeline's guidance_rescale."""
    request = Request(
        prompt="a cat",
        width=64,
        height=64,
        seed=3,
        steps=4,
        sampler="ddim",
        cfg_scale=7.5,
        cfg_rescale=0.7,
        conventions="diffusers",
    )
    ours = pixels(engine("sd2-v").run(request).images)
    close(ours, theirs("sd2-v", request, negative=None))
    assert np.abs(ours - pixels(engine("sd2-v").run(replace(request, cfg_rescale=0.0)).images)).max() > 1


@pytest.mark.parametrize("sampler", ["euler", "euler_ancestral", "heun", "ddim", "dpmpp_2m"])
@pytest.mark.parametrize("convention", ["minisd", "diffusers"])
def test_image_i_of_a_batch_is_seed_plus_i_alone(sampler: str, convention: str) -> None:
    """Oracle: equality of bits, latents and pixels."""
    eta = 1.0 if sampler == "ddim" else None
    request = Request(prompt="a cat", seed=10, count=2, steps=3, sampler=sampler, eta=eta)
    request = replace(request, conventions=convention)
    batch = engine("sd1").run(request)
    for i in range(2):
        alone = engine("sd1").run(replace(request, seed=10 + i, count=1))
        assert torch.equal(batch.drawing.latents[i], alone.drawing.latents[0])
        assert np.array_equal(pixels(batch.images)[i], pixels(alone.images)[0])


@pytest.mark.parametrize("name", ["sd1-inpaint", "sdxl-inpaint", "sdxl-refiner", "sd2-eps"])
def test_other_variants_draw_from_text(name: str) -> None:
    """Oracle: equality of image 1 of a batch with its seed alone; something that is a picture."""
    request = Request(prompt="a cat", seed=10, count=2, steps=2)
    batch = engine(name).run(request)
    assert batch.image.size == (64, 64)
    assert pixels(batch.images).std() > 10
    alone = engine(name).run(replace(request, seed=11, count=1))
    assert np.array_equal(pixels(batch.images)[1], pixels(alone.images)[0])


def test_a_long_prompt_reads_on_where_it_is_not_cut() -> None:
    """Oracle: tokens told, and a picture that depends on what stands beyond the 75th."""
    long = "word " * 80
    request = Request(prompt=long + "cat", seed=1, steps=2)
    result = engine("sd1").run(request)
    assert result.drawing.tokens == (81, 81)
    other = engine("sd1").run(replace(request, prompt=long + "dog"))
    assert not np.array_equal(pixels(result.images), pixels(other.images))
    cut = [
        engine("sd1").run(replace(request, prompt=long + end, long_prompt="truncate"))
        for end in ("cat", "dog")
    ]
    assert cut[0].drawing.tokens == (81, 75)
    assert np.array_equal(pixels(cut[0].images), pixels(cut[1].images))


def test_what_was_decided_is_told_and_draws_the_same_again() -> None:
    """Oracle: a request without a seed, and the request of its result, give the same picture."""
    first = engine("sd1").run(Request(prompt="a cat", steps=2))
    assert first.request.seed is not None
    assert (first.request.width, first.request.height) == (64, 64)
    assert first.drawing.schedule == "karras" and len(first.drawing.sigmas) == 3
    again = engine("sd1").run(Request.from_dict(first.request.to_dict()))
    assert np.array_equal(pixels(first.images), pixels(again.images))
