"""Oracle: diffusers' UNet with time_cond_proj_dim, and the embedding of its LCM pipeline."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import LatentConsistencyModelPipeline

from minisd.engine import Engine
from minisd.models.unet import guidance_embedding
from minisd.request import Request
from minisd.weights_loader.derive import derive_unet
from minisd.weights_loader.expected import unet_shapes
from minisd.weights_loader.keymap import unet_rules
from minisd.weights_loader.rule import expected_theirs
from tests import oracles, tiny
from tests.models.test_controlnet import inputs

DIM = 16
CONFIGS = {name: replace(tiny.TINY[name].unet, guidance_dim=DIM) for name in ("sd1", "sdxl")}


@pytest.mark.parametrize("scale", [1.0, 7.5, 8.25])
def test_embedding_as_diffusers(scale: float) -> None:
    method = LatentConsistencyModelPipeline.get_guidance_scale_embedding
    wanted = method(None, torch.tensor([scale - 1.0]), embedding_dim=256)
    torch.testing.assert_close(guidance_embedding(scale, 256), wanted, rtol=0, atol=2e-3)


@pytest.mark.parametrize("name", CONFIGS)
def test_unet_as_diffusers(name: str) -> None:
    config = CONFIGS[name]
    weights = tiny.random_weights(unet_shapes(config), 4)
    mine, other = (
        tiny.unet(config, weights),
        oracles.diffusers_unet(config, weights, time_cond_proj_dim=DIM),
    )
    made = inputs(config)
    w = guidance_embedding(7.5, DIM).double()
    y = w if config.y_dim is None else torch.cat([made["y"], w.expand(2, -1)], dim=1)
    vector = {"text_embeds": made["pooled"], "time_ids": made["ids"]} if "ids" in made else None
    with torch.inference_mode():
        args = made["x"], made["timesteps"], made["context"]
        got = mine(*args, y)
        want = other(*args, timestep_cond=w, added_cond_kwargs=vector, return_dict=False)[0]
    assert got.abs().max() > 0.1 and (got - want).abs().max() <= 1e-10


@pytest.mark.parametrize("name", CONFIGS)
def test_config_from_names_and_shapes(name: str) -> None:
    config = CONFIGS[name]
    heads = {"num_heads": config.num_heads, "head_dim": config.head_dim}
    original = replace(derive_unet(unet_shapes(config), "original"), **heads)
    diffusers = replace(derive_unet(expected_theirs(unet_rules(config)), "diffusers"), **heads)
    assert original == config == diffusers


def test_one_call_a_step_and_the_scale_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Oracle: the number of calls of the network; pictures of two scales."""
    config = replace(tiny.TINY["sd1"], unet=CONFIGS["sd1"])
    monkeypatch.setitem(tiny.TINY, "lcm", config)
    engine = Engine(tiny.tiny_model("lcm"))
    calls: list[int] = []
    inner = type(engine.model.unet).forward

    def forward(self: torch.nn.Module, x: torch.Tensor, *args: object, **more: object) -> torch.Tensor:
        calls.append(len(x))
        return inner(self, x, *args, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(type(engine.model.unet), "forward", forward)
    request = Request(prompt="an apple", width=64, height=64, seed=1, steps=3, sampler="lcm", cfg_scale=8.0)
    first = np.asarray(engine.run(request).images[0])
    assert calls == [1, 1, 1]
    second = np.asarray(engine.run(replace(request, cfg_scale=2.0)).images[0])
    assert not np.array_equal(first, second)
