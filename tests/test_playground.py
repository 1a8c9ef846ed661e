"""Oracle: diffusers' SDXL pipeline with its EDM scheduler and a VAE of given mean and spread."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import EDMEulerScheduler, StableDiffusionXLPipeline

from minisd.config import PLAYGROUND_MEAN, PLAYGROUND_SCALE, PLAYGROUND_STD
from minisd.engine import Engine
from minisd.latents import to_unet, to_vae
from minisd.model import load_model
from minisd.request import Request
from tests import oracles, tiny
from tests.test_pipeline import close, pipeline, pixels

VAE = replace(
    tiny.TINY["sdxl"].vae,
    scale_factor=PLAYGROUND_SCALE,
    latents_mean=PLAYGROUND_MEAN,
    latents_std=PLAYGROUND_STD,
)
CONFIG = replace(tiny.TINY["sdxl"], prediction="edm_eps", vae=VAE)
REQUEST = Request(
    prompt="a red apple",
    negative_prompt="blurry",
    width=64,
    height=64,
    seed=5,
    steps=5,
    sampler="euler",
    schedule="karras",
    cfg_scale=3.0,
    conventions="diffusers",
)


def test_every_pixel_within_one_level(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(tiny.TINY, "playground", CONFIG)
    ours = pixels(Engine(tiny.tiny_model("playground")).run(REQUEST).images)
    weights = tiny.network_weights(CONFIG, dtype=torch.float32)["vae"]
    parts = {k: v for k, v in pipeline("sdxl", "euler").components.items() if v is not None}
    parts["vae"] = oracles.diffusers_vae(
        VAE, weights, latents_mean=list(PLAYGROUND_MEAN), latents_std=list(PLAYGROUND_STD)
    )
    parts["scheduler"] = EDMEulerScheduler(
        sigma_min=0.002, sigma_max=80.0, sigma_data=0.5, prediction_type="epsilon"
    )
    pipe = StableDiffusionXLPipeline(**parts, add_watermarker=False)
    pipe.set_progress_bar_config(disable=True)
    with torch.inference_mode():
        theirs = pipe(
            REQUEST.prompt,
            negative_prompt=REQUEST.negative_prompt,
            width=64,
            height=64,
            num_inference_steps=REQUEST.steps,
            guidance_scale=REQUEST.cfg_scale,
            generator=[torch.Generator().manual_seed(5)],
        ).images
    close(ours, pixels(theirs))


def test_a_file_says_it_by_its_prediction(tmp_path: Path) -> None:
    """Oracle: the config that was written."""
    path = tiny.write_checkpoint(tmp_path / "playground.safetensors", CONFIG)
    assert load_model(path).config.vae == VAE


def test_there_and_back() -> None:
    """Oracle: the formula of one channel; and without mean and spread the same bits as a plain factor."""
    z = torch.randn(1, 4, 3, 3, dtype=torch.float64)
    made = to_unet(z, VAE)
    wanted = (z[0, 1] - PLAYGROUND_MEAN[1]) * PLAYGROUND_SCALE / PLAYGROUND_STD[1]
    torch.testing.assert_close(made[0, 1], wanted, rtol=0, atol=1e-12)
    torch.testing.assert_close(to_vae(made, VAE), z, rtol=0, atol=1e-12)
    plain = tiny.TINY["sdxl"].vae
    assert torch.equal(to_unet(z, plain), z * plain.scale_factor)
    assert torch.equal(to_vae(z, plain), z / plain.scale_factor)
