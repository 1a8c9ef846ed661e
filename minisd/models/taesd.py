"""TAESD: a tiny autoencoder for previews and for machines without memory to spare.

Reference: madebyollin/taesd (taesd.py, functions Encoder and Decoder); parameter names are theirs, below
`encoder.` and `decoder.`. Works on the latents the UNet sees (already times the scale factor) and on pixels
in [0, 1].
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from minisd.config import TAESDConfig


def conv(in_channels: int, out_channels: int, *, stride: int = 1, bias: bool = True) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, 3, padding=1, stride=stride, bias=bias)


class Clamp(nn.Module):
    """Soft clamp to (-3, 3): latents further out are noise that has not been removed."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x / 3) * 3


class Block(nn.Module):
    """relu(three convolutions + x). The optional 1x1 `skip` of the original is never used: all widths are
    equal."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            conv(width, width), nn.ReLU(), conv(width, width), nn.ReLU(), conv(width, width)
        )
        self.fuse = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.fuse(self.conv(x) + x)


def encoder(config: TAESDConfig) -> nn.Sequential:
    layers: list[nn.Module] = [conv(config.in_channels, config.width)]
    for level, blocks in enumerate(config.num_blocks):
        if level > 0:
            layers.append(conv(config.width, config.width, stride=2, bias=False))
        layers += [Block(config.width) for _ in range(blocks)]
    return nn.Sequential(*layers, conv(config.width, config.latent_channels))


def decoder(config: TAESDConfig) -> nn.Sequential:
    layers: list[nn.Module] = [Clamp(), conv(config.latent_channels, config.width), nn.ReLU()]
    for level, blocks in reversed(list(enumerate(config.num_blocks))):
        layers += [Block(config.width) for _ in range(blocks)]
        if level > 0:
            layers += [nn.Upsample(scale_factor=2), conv(config.width, config.width, bias=False)]
    return nn.Sequential(*layers, conv(config.width, config.in_channels))


class TAESD(nn.Module):
    """encode: pixels [0, 1] b 3 H W -> latents b 4 H/8 W/8 (scaled, as the UNet sees them). decode: the
    reverse."""

    def __init__(self, config: TAESDConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = encoder(config)
        self.decoder = decoder(config)

    def encode(self, x: Tensor) -> Tensor:
        return self.encoder(x)

    def decode(self, z: Tensor) -> Tensor:
        return self.decoder(z)
