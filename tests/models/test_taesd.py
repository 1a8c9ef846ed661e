"""Oracle: diffusers.AutoencoderTiny of the same tiny config, weights by our key map, float64 on the CPU."""

from __future__ import annotations

import pytest
import torch

from minisd.config import TAESDConfig
from minisd.models.taesd import TAESD
from minisd.weights_loader.expected import taesd_shapes
from tests.oracles import diffusers_taesd
from tests.tiny import TINY_TAESD, random_weights, taesd
from tests.weights_loader.manifests import manifest, shapes

CONFIGS = {
    "sd": TINY_TAESD,
    "uneven": TAESDConfig(width=8, num_blocks=(2, 1, 3)),
    "16 channels": TAESDConfig(width=8, latent_channels=16),
}


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_encode_and_decode(config: TAESDConfig) -> None:
    """Oracle: diffusers in float64; its pixels are -1 .. 1, ours 0 .. 1 as in the original."""
    ours = taesd(config, seed=1)
    theirs = diffusers_taesd(config, random_weights(taesd_shapes(config), seed=1))
    generator = torch.Generator().manual_seed(2)
    pixels = torch.rand(2, 3, 32, 48, generator=generator, dtype=torch.float64)
    latents = torch.randn(2, config.latent_channels, 5, 7, generator=generator, dtype=torch.float64) * 4
    assert (ours.encode(pixels) - theirs.encode(pixels * 2 - 1).latents).abs().max() <= 1e-10
    assert (ours.decode(latents) * 2 - 1 - theirs.decode(latents).sample).abs().max() <= 1e-10


def test_latents_are_clamped_softly() -> None:
    """Oracle: 3 tanh(x / 3), which no longer tells a latent of 1e6 from one of 1e7."""
    network = taesd(seed=1)
    far = torch.full((1, 4, 4, 4), 1e6, dtype=torch.float64)
    assert torch.equal(network.decode(far), network.decode(far * 10))


@pytest.mark.parametrize("half", ["encoder", "decoder"])
def test_state_dict_is_that_of_the_published_file(half: str) -> None:
    """Oracle: the key lists of taesd_encoder and taesd_decoder."""
    with torch.device("meta"):
        ours = TAESD(TAESDConfig()).state_dict()
    mine = {k.removeprefix(f"{half}."): tuple(v.shape) for k, v in ours.items() if k.startswith(f"{half}.")}
    assert mine == shapes(manifest("adapters")[f"taesd_{half} (original)"])
