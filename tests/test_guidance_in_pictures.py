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


class Computed(Exception):
    """A rule was at work."""


# function of minisd.denoiser that computes a rule, its neutral value beside whatever else it takes, another
RULES: list[tuple[str, dict[str, object], dict[str, object]]] = [
    ("rescaled", {"cfg_rescale": 0.0}, {"cfg_rescale": 0.5}),
    ("projected", {"apg_eta": 1.0, "apg_norm": 0.0, "apg_momentum": 0.0}, {"apg_eta": 0.5}),
    ("thresholded", {"mimic_scale": 0.0, "mimic_percentile": 0.7}, {"mimic_scale": 2.0}),
    ("degraded", {"sag_scale": 0.0}, {"sag_scale": 0.5}),
    ("Denoiser.worse", {"pag_scale": 0.0}, {"pag_scale": 0.5}),
    ("Denoiser.worse", {"slg_scale": 0.0, "slg_start": 0.1, "slg_end": 0.9}, {"slg_scale": 0.5}),
    ("weighted", {"prompt": "a cat AND a dog :0"}, {"prompt": "a cat AND a dog :0.1"}),
    ("weighted", {"prompt": "a cat:1 AND a dog :0"}, {"prompt": "a cat :0.5 AND a dog :0"}),
    ("weighted", {"prompt": "a cat :1", "conventions": "a1111"}, {"prompt": "a cat :0.5"}),
    ("cfg", {"cfg_scale": 1.0}, {"cfg_scale": 1.1}),
]


@pytest.mark.parametrize("function,neutral,acting", RULES)
def test_nothing_is_computed_at_the_neutral_value(
    function: str, neutral: dict[str, object], acting: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Oracle: bits without the rule, whose function is never called; at another value it is."""
    kept = {n: v for n, v in neutral.items() if n in ("cfg_scale", "conventions")}
    off = drawn(**kept)

    def computed(*args: object, **more: object) -> None:
        raise Computed

    monkeypatch.setattr(f"minisd.denoiser.{function}", computed)
    on = drawn(**neutral)
    assert torch.equal(on.latents, off.latents) and on.images[0].tobytes() == off.images[0].tobytes()
    with pytest.raises(Computed):
        drawn(**{**kept, **acting})


@pytest.mark.parametrize("sampler", ["euler_cfgpp", "ddim_cfgpp"])
def test_cfgpp_at_scale_zero_is_the_solver_without_it(sampler: str) -> None:
    """Oracle: bits of Euler without a prompt's guidance; of another scale it is another picture."""
    assert torch.equal(
        drawn(sampler=sampler, cfg_scale=0.0).latents, drawn(sampler="euler", cfg_scale=0.0).latents
    )
    assert not torch.equal(
        drawn(sampler=sampler, cfg_scale=0.3).latents, drawn(sampler="euler", cfg_scale=0.3).latents
    )


def test_the_weight_of_a_lone_prompt() -> None:
    """Oracle: CFG with the scale multiplied by it, to rounding, where a colon is read as A1111 does."""
    half = drawn(prompt="a cat :0.5", conventions="a1111", cfg_scale=4.0).latents
    wanted = drawn(prompt="a cat", conventions="a1111", cfg_scale=2.0).latents
    assert (half - wanted).norm() < 1e-5 * wanted.norm()


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
