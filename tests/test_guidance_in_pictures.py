"""Oracle: the pictures of the tiny pipeline with a rule off, neutral and on; diffusers' FreeU in float64."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest
import torch
from diffusers.utils import torch_utils

from minisd.model import Model
from minisd.models.edits import FreeU, scaled_low_frequencies
from minisd.pipeline import Drawing, draw
from minisd.request import Request
from tests.oracles import diffusers_unet
from tests.samplers.test_as_diffusers import Wide
from tests.test_guidance import close, normal
from tests.tiny import TINY, network_weights, tiny_model, unet


@pytest.mark.parametrize("name", ["sd1", "sdxl"])
def test_freeu(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Oracle: diffusers' enable_freeu, its filter in float64; values that float32 holds exactly."""
    config = TINY[name].unet
    state = network_weights(TINY[name])["unet"]
    monkeypatch.setattr(torch_utils, "torch", Wide())
    theirs = diffusers_unet(config, state)
    theirs.enable_freeu(s1=0.75, s2=0.25, b1=1.25, b2=1.5)
    t, context = torch.tensor([500.0]), normal(2, 77, config.context_dim, seed=1)
    x, y = normal(2, 4, 16, 24, seed=2), None
    more: dict[str, object] = {}
    if config.y_dim is not None:
        pooled, times = normal(2, 24, seed=4), torch.tensor([[64.0, 64, 0, 0, 64, 64]] * 2)
        more["added_cond_kwargs"] = {"text_embeds": pooled, "time_ids": times}
        with torch.inference_mode():
            y = torch.cat([pooled, theirs.add_time_proj(times.flatten()).reshape(2, -1).double()], dim=1)
    with torch.inference_mode():
        wanted = theirs(x, t, context, **more).sample
        out = unet(config, state)(x, t, context, y, freeu=FreeU(b1=1.25, b2=1.5, s1=0.75, s2=0.25))
        off = unet(config, state)(x, t, context, y)
        assert torch.equal(unet(config, state)(x, t, context, y, freeu=FreeU()), off)
    close(out, wanted)
    assert float((out - off).abs().max()) > 1e-3


def test_low_frequencies() -> None:
    """Oracle: scale 0 takes away the mean and leaves what is fast; of constant pictures nothing is left."""
    flat = torch.full((1, 1, 8, 8), 3.0, dtype=torch.float64)
    checks = (torch.arange(8)[:, None] + torch.arange(8)).remainder(2).double()[None, None] - 0.5
    assert scaled_low_frequencies(flat, 0.0).abs().max() < 1e-14
    close(scaled_low_frequencies(flat + checks, 0.5), 0.5 * flat + checks, 1e-14)


@cache
def small() -> Model:
    return tiny_model("sd1")


def drawn(**fields: object) -> Drawing:
    # 16 x 8 latents: the middle block sees two tokens; alone, a token attends to itself whatever PAG says
    request = Request(prompt="a cat", negative_prompt="dark", steps=3, seed=4, cfg_scale=4.0, height=128)
    request = replace(request, **fields)  # type: ignore[arg-type]
    return draw(small(), request.for_model(small().config, seed=0))


NEUTRAL: list[tuple[dict[str, object], dict[str, object]]] = [
    ({"freeu": (1.0, 1.0, 1.0, 1.0)}, {}),
    ({"mimic_percentile": 0.7}, {}),
    ({"slg_scale": 3.0, "slg_start": 0.5, "slg_end": 0.5}, {}),
    ({"slg_start": 0.3, "slg_end": 0.6}, {}),
    ({"guidance_start": 0.4, "guidance_end": 0.4, "pag_scale": 1.0, "sag_scale": 1.0}, {"cfg_scale": 1.0}),
    ({"cfg_scale": 1.0, "cfg_rescale": 0.5, "apg_eta": 0.0, "mimic_scale": 2.0}, {"cfg_scale": 1.0}),
    ({"cfg_scale": 1.0, "negative_prompt": "bright"}, {"cfg_scale": 1.0}),
]


@pytest.mark.parametrize("neutral,off", NEUTRAL)
def test_neutral_through_the_pipeline(neutral: dict[str, object], off: dict[str, object]) -> None:
    """Oracle: bits of the picture without the rule."""
    a, b = drawn(**neutral), drawn(**off)
    assert torch.equal(a.latents, b.latents) and a.images[0].tobytes() == b.images[0].tobytes()


@pytest.mark.parametrize(
    "rule",
    [
        {"cfg_rescale": 0.5},
        {"guidance_end": 0.5},
        {"apg_eta": 0.0},
        {"apg_norm": 1.0},
        {"mimic_scale": 1.0},
        {"pag_scale": 1.0},
        {"sag_scale": 1.0},
        {"slg_scale": 1.0},
        {"freeu": (1.2, 1.4, 0.9, 0.2)},
        {"negative_prompt": "bright"},
    ],
)
def test_rules_reach_the_picture(rule: dict[str, object]) -> None:
    """Oracle: inequality with the picture without the rule: every field of a Request does something."""
    out = drawn(**rule).latents
    assert torch.isfinite(out).all() and float((out - drawn().latents).abs().max()) > 1e-4
