"""A TAESD for the embedded latents: the decoder learns pictures from latents, the encoder latents from
pictures. File: `encoder.N...` and `decoder.N...` of madebyollin/taesd."""

from __future__ import annotations

import random
from collections.abc import Callable

import torch
from torch import Tensor

from minisd.config import TAESDConfig
from minisd.models.taesd import TAESD

from ..muon import optimizers
from ..pictures import Painter, PictureSource
from ..vae import edge_loss
from .base import Base, descent

# no block at full size, where it would take two thirds of the time
CONFIG = TAESDConfig(width=20, num_blocks=(0, 1, 2, 2))
BATCH, POOL = 4, 600


def last_layers(network: TAESD) -> list[str]:
    return [f"encoder.{len(network.encoder) - 1}.", f"decoder.{len(network.decoder) - 1}."]


def train(
    base: Base,
    painter: Painter,
    source: PictureSource,
    minutes: float,
    say: Callable[[str], None],
    weights: dict[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """Weights under their published names, float16. weights: what to go on from."""
    torch.manual_seed(21)
    rng, generator = random.Random(21), torch.Generator().manual_seed(21)
    network = TAESD(CONFIG)
    if weights is not None:
        network.load_state_dict(weights)
    opts = optimizers(network, 5e-3, 0.0, ("encoder.0.", "decoder.1.", *last_layers(network)))
    pictures = [source.draw(rng) for _ in range(POOL)]
    pool = torch.cat([base.latents(painter.paint([p])) for p in pictures])
    say(f"{POOL} pictures encoded")
    for step in descent(list(network.parameters()), 5e-3, minutes, say, opts):
        rows = torch.randint(POOL, (BATCH,), generator=generator)
        x, z = painter.paint([pictures[i] for i in rows.tolist()]), pool[rows]
        # previews decode latents that are not finished: a little off, and sometimes smooth
        near = z + 0.1 * torch.rand(BATCH, 1, 1, 1, generator=generator) * torch.randn(
            z.shape, generator=generator
        )
        y = network.decode(near) * 2 - 1
        loss = (x - y).abs().mean() + (x - y).square().mean() + edge_loss(x, y)
        step(loss + 0.3 * (network.encode((x + 1) / 2) - z).square().mean())
    return {name: tensor.half().contiguous() for name, tensor in network.state_dict().items()}
