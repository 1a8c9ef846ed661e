"""T2I-Adapter: a small network that turns a picture into features for each level of the UNet, once per run.

Paper: Mou et al. 2023 (arXiv:2302.08453). Reference: Adapter and Adapter_light of TencentARC/T2I-Adapter,
whose parameter names these are, and diffusers' FullAdapterXL for SDXL.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from minisd.config import T2IAdapterConfig, UNetConfig
from minisd.models.conv import Conv2d, PointwiseConv


class ConvBlock(nn.Module):
    """x + block2(relu(block1(x))), with the projection to its width before it, if there is one."""

    def __init__(self, inputs: int, width: int, *, pointwise: bool) -> None:
        super().__init__()
        if inputs != width:
            self.in_conv = PointwiseConv(inputs, width)
        self.block1 = Conv2d(width, width, 3, padding=1)
        self.block2 = PointwiseConv(width, width) if pointwise else Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.in_conv(x) if hasattr(self, "in_conv") else x
        return x + self.block2(F.relu(self.block1(x)))


class LightLevel(nn.Module):
    """A level of the light variant: a quarter of the width inside."""

    def __init__(self, inputs: int, width: int, blocks: int) -> None:
        super().__init__()
        inner = width // 4
        self.in_conv = PointwiseConv(inputs, inner)
        self.body = nn.Sequential(*(ConvBlock(inner, inner, pointwise=False) for _ in range(blocks)))
        self.out_conv = PointwiseConv(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.out_conv(self.body(self.in_conv(x)))


class T2IAdapter(nn.Module):
    """Features of a hint [b c H W], values 0..1: one for each level, in the sizes of `input_blocks`."""

    def __init__(self, config: T2IAdapterConfig) -> None:
        super().__init__()
        self.control = config
        inputs = config.hint_channels * config.unshuffle**2
        if not config.light:
            self.conv_in = Conv2d(inputs, config.widths[0], 3, padding=1)
            inputs = config.widths[0]
        self.body = nn.ModuleList()
        for width in config.widths:
            if config.light:
                self.body.append(LightLevel(inputs, width, config.blocks))
            else:
                for n in range(config.blocks):
                    self.body.append(ConvBlock(width if n else inputs, width, pointwise=True))
            inputs = width

    def forward(self, hint: Tensor) -> tuple[Tensor, ...]:
        x = F.pixel_unshuffle(hint, self.control.unshuffle)
        x = x if self.control.light else self.conv_in(x)
        features, per_level = [], 1 if self.control.light else self.control.blocks
        for level, halved in enumerate(self.control.halved):
            x = F.avg_pool2d(x, 2, stride=2, ceil_mode=True) if halved else x
            for block in self.body[level * per_level : (level + 1) * per_level]:
                x = block(x)
            features.append(x)
        return tuple(features)


def feature_places(config: T2IAdapterConfig, unet: UNetConfig) -> tuple[int | None, ...]:
    """For each feature the index of the input block to whose output it is added; None is the middle block.

    SD1: the last block of every level before it is halved. SDXL's adapters work on half the size: the first
    feature comes after the first halving, the last after the middle block, as in diffusers."""
    last, n = [], 0
    for level, blocks in enumerate(unet.num_res_blocks):
        n += blocks + (level > 0)  # the halving before it
        last.append(n)
    if config.unshuffle != 16:
        return tuple(last)
    return last[0] + 1, *last[1:], None
