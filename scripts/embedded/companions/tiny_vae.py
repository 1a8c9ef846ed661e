"""A TAESD for the embedded latents: the decoder learns pictures from latents, the encoder latents from
pictures. File: `encoder.N...` and `decoder.N...` of madebyollin/taesd."""

from __future__ import annotations

import random
from collections.abc import Callable

import torch
from torch import Tensor

from minisd.config import TAESDConfig
from minisd.models.taesd import TAESD

from ..pictures import Painter, PictureSource
from ..vae import edge_loss
from .base import Base, descent

CONFIG = TAESDConfig(width=24, num_blocks=(0, 1, 2, 2))  # no block at full size: a third of the time
BATCH = 8


def train(
    base: Base, painter: Painter, source: PictureSource, minutes: float, say: Callable[[str], None]
) -> dict[str, Tensor]:
    """Weights under their published names, float16."""
    torch.manual_seed(21)
    rng, generator = random.Random(21), torch.Generator().manual_seed(21)
    network = TAESD(CONFIG)
    for step in descent(list(network.parameters()), 2e-3, minutes, say):
        x = painter.paint([source.draw(rng) for _ in range(BATCH)])
        z = base.latents(x)
        # previews decode latents that are not finished: a little off, and sometimes smooth
        near = z + 0.1 * torch.rand(BATCH, 1, 1, 1, generator=generator) * torch.randn(
            z.shape, generator=generator
        )
        y = network.decode(near) * 2 - 1
        loss = (x - y).abs().mean() + (x - y).square().mean() + edge_loss(x, y)
        step(loss + 0.3 * (network.encode((x + 1) / 2) - z).square().mean())
    return {name: tensor.half().contiguous() for name, tensor in network.state_dict().items()}
