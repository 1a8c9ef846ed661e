"""Oracle: diffusers.AutoencoderKL of the same tiny config, weights by our key map, float64 on the CPU."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from minisd.config import VAEConfig
from minisd.models.tiling import starts, tiled
from minisd.models.vae import AutoencoderKL
from minisd.weights_loader.expected import vae_shapes
from tests.oracles import diffusers_vae
from tests.tiny import TINY_SD1, TINY_SDXL, random_weights, vae
from tests.weights_loader.manifests import FAMILY, manifest, shapes

TOLERANCE = 1e-10
CONFIGS = {
    "sd": TINY_SD1.vae,
    "sdxl": TINY_SDXL.vae,
    "two blocks": replace(TINY_SD1.vae, num_res_blocks=2, ch_mult=(1, 2)),
    "16 channels": replace(TINY_SD1.vae, z_channels=16, embed_dim=16, ch_mult=(1, 1, 2)),
}


def normal(*shape: int, seed: int = 5) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_encode_and_decode(config: VAEConfig) -> None:
    """Oracle: diffusers in float64: mean, log variance, a sample with the same noise, pixels; batch 2."""
    weights = random_weights(vae_shapes(config), seed=1)
    ours, theirs = vae(config, weights), diffusers_vae(config, weights)
    pixels = normal(2, 3, 32, 48).clamp(-1, 1)
    posterior, reference = ours.encode(pixels), theirs.encode(pixels).latent_dist
    assert (posterior.mean - reference.mean).abs().max() <= TOLERANCE
    assert (posterior.logvar - reference.logvar).abs().max() <= TOLERANCE
    noise = torch.randn(reference.mean.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    drawn = reference.sample(torch.Generator().manual_seed(3))
    assert (posterior.sample(noise) - drawn).abs().max() <= TOLERANCE
    assert (posterior.mean - drawn).abs().max() > 1e-3  # mean and sample are not the same thing
    z = normal(2, config.z_channels, 5, 7)
    assert (ours.decode(z) - theirs.decode(z).sample).abs().max() <= TOLERANCE


def test_log_variance_is_clamped() -> None:
    """Oracle: the bounds of ldm's DiagonalGaussianDistribution, -30 and 20."""
    config = TINY_SD1.vae
    weights = random_weights(vae_shapes(config), seed=1)
    weights["quant_conv.weight"] = weights["quant_conv.weight"] * 1e6
    logvar = vae(config, weights).encode(normal(1, 3, 16, 16)).logvar
    assert logvar.min() == -30.0 and logvar.max() == 20.0


def test_a_wrong_eps_is_seen() -> None:
    """Oracle: this file's own tolerance, exceeded a thousandfold in both halves with eps 1e-5."""
    config = TINY_SD1.vae
    weights = random_weights(vae_shapes(config), seed=1)
    right, wrong = vae(config, weights), vae(config, weights)
    for module in wrong.modules():
        if isinstance(module, nn.GroupNorm):
            module.eps = 1e-5
    pixels, z = normal(1, 3, 32, 32), normal(1, 4, 4, 4)
    assert (right.encode(pixels).mean - wrong.encode(pixels).mean).abs().max() > 1000 * TOLERANCE
    assert (right.decode(z) - wrong.decode(z)).abs().max() > 1000 * TOLERANCE


def test_one_tile_is_the_whole_bit_for_bit() -> None:
    """Oracle: equality with the untiled result."""
    network = vae(TINY_SD1.vae, random_weights(vae_shapes(TINY_SD1.vae), seed=1))
    z, pixels = normal(1, 4, 6, 5), normal(1, 3, 48, 40)
    assert torch.equal(tiled(network.decode, z, tile=6, overlap=2, up=8), network.decode(z))
    whole = network.encode(pixels).mean
    assert torch.equal(tiled(lambda p: network.encode(p).mean, pixels, tile=48, overlap=16, down=8), whole)


def test_tiles_of_a_local_map_are_the_whole() -> None:
    """Oracle: the map itself, where no pixel looks beyond its tile: blending equal values changes nothing."""
    z = normal(2, 4, 23, 17)
    twice = lambda t: t.repeat_interleave(8, -1).repeat_interleave(8, -2) * 3 - 1  # noqa: E731
    assert (tiled(twice, z, tile=8, overlap=3, up=8) - twice(z)).abs().max() < 1e-13
    pixels = normal(2, 3, 72, 120)
    pooled = lambda p: torch.nn.functional.avg_pool2d(p, 8)  # noqa: E731
    assert (tiled(pooled, pixels, tile=32, overlap=8, down=8) - pooled(pixels)).abs().max() < 1e-13


def test_several_tiles_come_close() -> None:
    """Oracle: the untiled result, to a quarter of its spread: a tile's norms and attention see less."""
    network = vae(TINY_SD1.vae, random_weights(vae_shapes(TINY_SD1.vae), seed=1))
    z = normal(1, 4, 18, 16)
    whole = network.decode(z)
    out = tiled(network.decode, z, tile=16, overlap=8, up=8)
    assert out.shape == whole.shape
    assert (out - whole).square().mean().sqrt() < 0.25 * whole.std()
    assert not torch.equal(out, whole)
    moments = network.encode(whole).mean
    parts = tiled(lambda p: network.encode(p).mean, whole, tile=128, overlap=64, down=8)
    assert parts.shape == moments.shape
    assert (parts - moments).square().mean().sqrt() < 0.25 * moments.std()


@pytest.mark.parametrize(
    "length,tile,overlap", [(100, 64, 16), (64, 64, 16), (65, 64, 16), (7, 3, 2), (1000, 8, 0)]
)
def test_tiles_cover_everything_with_the_overlap(length: int, tile: int, overlap: int) -> None:
    """Oracle: the definition: first at 0, last at the end, neighbours share at least `overlap`."""
    places = starts(length, tile, overlap)
    assert places[0] == 0 and places[-1] + min(tile, length) == length
    assert all(0 < b - a <= tile - overlap for a, b in zip(places, places[1:], strict=False))


@pytest.mark.parametrize("tile,overlap,down", [(8, 8, 1), (8, -1, 1), (12, 4, 8), (16, 4, 8)])
def test_tiles_that_cannot_be(tile: int, overlap: int, down: int) -> None:
    """Oracle: the documented ValueError."""
    with pytest.raises(ValueError, match="overlap"):
        tiled(lambda t: t, normal(1, 1, 64, 64), tile=tile, overlap=overlap, down=down)


@pytest.mark.parametrize("name", FAMILY)
def test_state_dict_is_that_of_the_published_file(name: str) -> None:
    """Oracle: the key list of the released file, names and shapes."""
    with torch.device("meta"):
        ours = {k: tuple(v.shape) for k, v in AutoencoderKL(FAMILY[name].vae).state_dict().items()}
    assert ours == shapes(manifest(name)["tensors"], "first_stage_model.")
