"""Oracle: diffusers.UNet2DConditionModel of the same tiny config, weights by our key map, float64."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from minisd.config import UNetConfig
from minisd.models.transformer import SpatialTransformer
from minisd.models.unet import UNet, timestep_embedding
from minisd.weights_loader.expected import unet_shapes
from tests.oracles import diffusers_unet
from tests.tiny import TINY, TINY_SD1, TINY_SDXL, random_weights, unet
from tests.weights_loader.manifests import FAMILY, IN_CHANNELS, manifest, shapes

TOLERANCE = 1e-10


@cache
def pair(name: str) -> tuple[UNet, UNet2DConditionModel]:
    """(ours, theirs) with the same weights."""
    config = TINY[name].unet
    weights = random_weights(unet_shapes(config), seed=1)
    return unet(config, weights), diffusers_unet(config, weights)


def inputs(config: UNetConfig, batch: int, height: int, width: int) -> tuple[Tensor, Tensor, Tensor | None]:
    """(x, context, y), float64."""
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(batch, config.in_channels, height, width, generator=generator, dtype=torch.float64)
    context = torch.randn(batch, 77, config.context_dim, generator=generator, dtype=torch.float64)
    y = None
    if config.y_dim is not None:
        y = torch.randn(batch, config.y_dim, generator=generator, dtype=torch.float64)
    return x, context, y


def their_output(network: nn.Module, x: Tensor, t: Tensor, context: Tensor, y: Tensor | None) -> Tensor:
    """diffusers' output. It builds y from pooled text and numbers; to pass a whole y, that is bypassed."""
    extra = {}
    if y is not None:
        network.get_aug_embed = lambda **_: network.add_embedding(y)
        extra["added_cond_kwargs"] = {}
    return network(x, t, context, **extra).sample


@pytest.mark.parametrize("name", TINY)
def test_every_family_and_variant(name: str) -> None:
    """Oracle: diffusers in float64; two images with a timestep each, one of them fractional."""
    config = TINY[name].unet
    x, context, y = inputs(config, 2, 16, 8)
    timesteps = torch.tensor([999.0, 12.75])
    network, oracle = pair(name)
    ours, theirs = network(x, timesteps, context, y), their_output(oracle, x, timesteps, context, y)
    assert ours.dtype == torch.float64 and ours.std() > 0.1
    assert (ours - theirs).abs().max() <= TOLERANCE


@pytest.mark.parametrize("size", [(8, 8), (9, 13), (10, 12), (15, 7), (3, 2)], ids=str)
@pytest.mark.parametrize("name", ["sd1", "sdxl"])
def test_latents_that_do_not_halve_evenly(name: str, size: tuple[int, int]) -> None:
    """Oracle: diffusers in float64, which passes the size of the next skip to its upsamplers as we do."""
    config = TINY[name].unet
    x, context, y = inputs(config, 1, *size)
    network, oracle = pair(name)
    t = torch.tensor([501.0])
    ours, theirs = network(x, t, context, y), their_output(oracle, x, t, context, y)
    assert ours.shape[-2:] == size
    assert (ours - theirs).abs().max() <= TOLERANCE


@pytest.mark.parametrize("timestep", [0.0, 1.0, 0.5, 333.3333, 998.9999, 999.0])
def test_timesteps(timestep: float) -> None:
    """Oracle: diffusers in float64; one timestep for a batch of three."""
    x, context, _ = inputs(TINY_SD1.unet, 3, 8, 8)
    network, oracle = pair("sd1")
    ours = network(x, torch.tensor([timestep]), context)
    theirs = oracle(x, torch.tensor([timestep]), context).sample
    assert (ours - theirs).abs().max() <= TOLERANCE


def test_timestep_embedding() -> None:
    """Oracle: the formula of Vaswani et al. in float64, cosines first; float32 angles leave 1e-4."""
    timesteps = torch.tensor([0.0, 1.0, 17.25, 999.0], dtype=torch.float64)
    frequencies = 10000.0 ** (-torch.arange(16, dtype=torch.float64) / 16)
    angles = timesteps[:, None] * frequencies
    ours = timestep_embedding(timesteps, 32)
    assert ours.dtype == torch.float32
    assert (ours - torch.cat([angles.cos(), angles.sin()], 1)).abs().max() < 1e-4


@pytest.mark.parametrize("kind", ["resblock", "transformer", "out"])
@pytest.mark.parametrize("name", ["sd1", "sdxl"])
def test_a_wrong_eps_is_seen(name: str, kind: str) -> None:
    """Oracle: this file's own tolerance, exceeded a thousandfold when one kind of GroupNorm is wrong."""
    config = TINY[name].unet
    weights = random_weights(unet_shapes(config), seed=1)
    x, context, y = inputs(config, 1, 8, 8)
    right, _ = pair(name)
    wrong = unet(config, weights)
    transformers = {m.norm for m in wrong.modules() if isinstance(m, SpatialTransformer)}
    final = wrong.out[0]
    for module in wrong.modules():
        if isinstance(module, nn.GroupNorm):
            own = "transformer" if module in transformers else "out" if module is final else "resblock"
            if own == kind:
                module.eps = 1e-5 if own == "transformer" else 1e-6
    timesteps = torch.tensor([500.0])
    difference = right(x, timesteps, context, y) - wrong(x, timesteps, context, y)
    assert difference.abs().max() > 1000 * TOLERANCE


def test_y_is_needed_and_used() -> None:
    """Oracle: inequality of outputs for two y, and the assertion for none."""
    network, _ = pair("sdxl")
    x, context, y = inputs(TINY_SDXL.unet, 1, 8, 8)
    assert y is not None
    first, second = (network(x, torch.tensor([9.0]), context, v) for v in (y, y + 1))
    assert (first - second).abs().max() > 1e-3
    with pytest.raises(AssertionError, match="vector y"):
        network(x, torch.tensor([9.0]), context)


@pytest.mark.parametrize("name", FAMILY)
def test_state_dict_is_that_of_the_published_file(name: str) -> None:
    """Oracle: the key list of the released file, names and shapes."""
    config = replace(FAMILY[name].unet, in_channels=IN_CHANNELS.get(name, 4))
    with torch.device("meta"):
        ours = {k: tuple(v.shape) for k, v in UNet(config).state_dict().items()}
    assert ours == shapes(manifest(name)["tensors"], "model.diffusion_model.")
