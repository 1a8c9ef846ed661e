"""Oracle: the same picture or network rolled around its edges; torch's circular padding; bits of runs without
what must not act."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from minisd import sampling
from minisd.engine import Engine
from minisd.models.conv import Conv2d, Wrap, around
from minisd.models.fused import Upsample
from minisd.models.tiling import in_parts
from minisd.models.unet import UNet
from minisd.picture import Picture
from minisd.request import Request
from tests.test_start import photo
from tests.tiny import TINY, network_weights, tiny_model, unet, vae

WRAPS = [(True, True), (True, False), (False, True)]


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def padded(x: Tensor, wrap: Wrap) -> Tensor:
    """By 1 on each side: torch's circular padding along the axes of wrap, zeros along the others."""
    x = F.pad(x, (1, 1, 0, 0), mode="circular" if wrap[1] else "constant")
    return F.pad(x, (0, 0, 1, 1), mode="circular" if wrap[0] else "constant")


@pytest.mark.parametrize("wrap", [*WRAPS, (False, False)])
@pytest.mark.parametrize(("size", "stride"), [((8, 12), 1), ((8, 12), 2), ((7, 9), 2), ((1, 2), 1)])
def test_a_convolution_around_the_edge(wrap: Wrap, size: tuple[int, int], stride: int) -> None:
    """Oracle: torch's circular padding, then the convolution without any."""
    conv = Conv2d(3, 5, 3, stride=stride, padding=1).double()
    x = normal(2, 3, *size)
    wanted = F.conv2d(padded(x, wrap), conv.weight, conv.bias, stride=stride)
    assert (around(conv, x, wrap, stride) - wanted).abs().max() < 1e-13


@pytest.mark.parametrize("implementation", ["nearest", "sub_pixel", "transposed"])
def test_enlarging_around_the_edge(implementation: str) -> None:
    """Oracle: every pixel doubled, circular padding, convolution."""
    up = Upsample(4).double()
    up.implementation = implementation
    up.fold()
    x = normal(1, 4, 5, 6)
    for wrap in WRAPS:
        wanted = F.conv2d(padded(F.interpolate(x, scale_factor=2.0), wrap), up.conv.weight, up.conv.bias)
        assert (up(x, wrap=wrap) - wanted).abs().max() < 1e-12


def rolled(network: UNet, wrap: Wrap) -> float:
    """How far the answer to a rolled picture is from the rolled answer."""
    x, context = (
        normal(1, network.config.in_channels, 16, 24),
        normal(1, 77, network.config.context_dim, seed=1),
    )
    time = torch.tensor([500.0], dtype=torch.float64)
    y = None if network.config.y_dim is None else normal(1, network.config.y_dim, seed=2)
    shift = tuple(8 * goes_on for goes_on in wrap)  # halved three times at most
    there = network(x.roll(shift, (2, 3)), time, context, y, wrap=wrap)
    return float((there - network(x, time, context, y, wrap=wrap).roll(shift, (2, 3))).abs().max())


@pytest.mark.parametrize("name", ["sd1", "sd2-v", "sdxl", "sdxl-refiner"])
def test_a_rolled_picture_is_answered_by_the_rolled_answer(name: str) -> None:
    """Oracle: the network itself, in float64; without the wrap, the edges are seen."""
    config = TINY[name]
    network = unet(config.unet, network_weights(config)["unet"])
    for wrap in WRAPS:
        assert rolled(network, wrap) < 1e-10
    x, context = normal(1, config.unet.in_channels, 16, 24), normal(1, 77, config.unet.context_dim)
    y = None if config.unet.y_dim is None else normal(1, config.unet.y_dim)
    call = (torch.tensor([500.0], dtype=torch.float64), context, y)
    apart = network(x.roll(8, 3), *call) - network(x, *call).roll(8, 3)
    assert apart.abs().max() > 1e-3


def test_the_autoencoder_around_the_edge() -> None:
    """Oracle: itself, rolled, in both directions."""
    config = TINY["sd1"].vae
    network = vae(config, network_weights(TINY["sd1"])["vae"])
    z, pixels = normal(1, 4, 6, 8), normal(1, 3, 48, 64)
    for wrap in WRAPS:
        by = tuple(3 * goes_on for goes_on in wrap)
        wide = tuple(8 * n for n in by)
        apart = network.decode(z.roll(by, (2, 3)), wrap) - network.decode(z, wrap).roll(wide, (2, 3))
        assert apart.abs().max() < 1e-10
        apart = network.encode(pixels.roll(wide, (2, 3)), wrap).mean
        assert (apart - network.encode(pixels, wrap).mean.roll(by, (2, 3))).abs().max() < 1e-10
    assert (network.decode(z.roll(3, 3)) - network.decode(z).roll(24, 3)).abs().max() > 1e-3


def test_tiles_around_the_edge() -> None:
    """Oracle: a function of single pixels, whose tiles must give the whole; and each tile is told whether it
    closes."""
    told: list[Wrap] = []

    def double(x: Tensor, wrap: Wrap) -> Tensor:
        told.append(wrap)
        return 2 * x

    x = normal(1, 3, 8, 40)
    assert (in_parts(double, x, tile=16, overlap=4, wrap=(True, True)) - 2 * x).abs().max() < 1e-13
    assert set(told) == {(True, False)} and len(told) == 4
    told.clear()
    assert torch.equal(in_parts(double, x, tile=40, overlap=4, wrap=(True, True)), 2 * x)
    assert told == [(True, True)]


@pytest.mark.parametrize("axes", ["x", "y", "xy"])
@pytest.mark.parametrize("sampler", ["dpmpp_2m", "euler_cfgpp"])
def test_shifted_noise_gives_the_shifted_picture(
    axes: str, sampler: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Oracle: bytes of the picture, rolled; float64, as sums over a picture are rounded in their order."""
    engine = Engine(tiny_model("sd1", dtype="float64"))
    asked = Request(prompt="waves", seed=3, steps=3, sampler=sampler, width=128, height=128, seamless=axes)
    by = (8 * ("y" in axes), 8 * ("x" in axes))
    plain = engine.run(asked)
    first = sampling.first_noise
    monkeypatch.setattr(sampling, "first_noise", lambda *a: first(*a).roll(by, (2, 3)))
    moved = engine.run(asked)
    apart = moved.drawing.latents - plain.drawing.latents.roll(by, (2, 3))
    assert apart.abs().max() < 1e-9
    pixels, there = (torch.from_numpy(np.array(r.images[0])) for r in (plain, moved))
    assert torch.equal(there, pixels.roll((8 * by[0], 8 * by[1]), (0, 1)))
    edges = engine.run(replace(asked, seamless="no"))
    assert (edges.drawing.latents - plain.drawing.latents).abs().max() > 1e-3


def test_seamless_with_tiles_masks_and_a_second_pass() -> None:
    """Oracle: finite latents that are not those without seamless; one tile is no tiling."""
    engine = Engine(tiny_model("sd1"))
    base = Request(prompt="waves", seed=3, steps=2, width=128, height=64, seamless="x")
    ways = [
        base,
        replace(base, hires_scale=1.5),
        replace(base, diffusion_tile=64),
        replace(base, image=Picture.of(photo()), resize="stretch"),
    ]
    for way in ways:
        out, flat = (engine.run(replace(way, seamless=s)).drawing.latents for s in ("x", "no"))
        assert torch.isfinite(out).all() and not torch.equal(out, flat)
    one = engine.run(replace(base, diffusion_tile=128)).drawing.latents
    assert torch.equal(one, engine.run(base).drawing.latents)
