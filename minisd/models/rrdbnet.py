"""RRDBNet, the network of ESRGAN and Real-ESRGAN: dense blocks at the picture's own size, then doublings.

Papers: Wang et al. 2018 (arXiv:1809.00219), Wang et al. 2021 (arXiv:2107.10833). Reference: RRDBNet of
XPixelGroup/BasicSR, whose parameter names these are.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minisd.config import RRDBNetConfig
from minisd.models.conv import Conv2d

SLOPE, SHARE = 0.2, 0.2  # of LeakyReLU; of what a block adds


class DenseBlock(nn.Module):
    """Five convolutions, each over all that came before it."""

    def __init__(self, width: int, growth: int) -> None:
        super().__init__()
        for n in range(1, 6):
            out = growth if n < 5 else width
            self.add_module(f"conv{n}", Conv2d(width + (n - 1) * growth, out, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        seen = x
        for n in range(1, 5):
            new = F.leaky_relu(self.get_submodule(f"conv{n}")(seen), SLOPE)
            seen = torch.cat([seen, new], dim=1)
        return x + SHARE * self.get_submodule("conv5")(seen)


class RRDB(nn.Module):
    """Three dense blocks, "residual in residual"."""

    def __init__(self, width: int, growth: int) -> None:
        super().__init__()
        self.rdb1 = DenseBlock(width, growth)
        self.rdb2 = DenseBlock(width, growth)
        self.rdb3 = DenseBlock(width, growth)

    def forward(self, x: Tensor) -> Tensor:
        return x + SHARE * self.rdb3(self.rdb2(self.rdb1(x)))


class RRDBNet(nn.Module):
    """Picture b c h w, values 0..1 -> b c (scale h) (scale w). With `unshuffle`, h and w are multiples of
    it."""

    def __init__(self, config: RRDBNetConfig) -> None:
        super().__init__()
        self.config = config
        w = config.width
        self.conv_first = Conv2d(config.channels * config.unshuffle**2, w, 3, padding=1)
        self.body = nn.Sequential(*(RRDB(w, config.growth) for _ in range(config.blocks)))
        self.conv_body = Conv2d(w, w, 3, padding=1)
        for n in range(1, config.ups + 1):
            self.add_module(f"conv_up{n}", Conv2d(w, w, 3, padding=1))
        self.conv_hr = Conv2d(w, w, 3, padding=1)
        self.conv_last = Conv2d(w, config.channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_first(F.pixel_unshuffle(x, self.config.unshuffle) if self.config.unshuffle > 1 else x)
        x = x + self.conv_body(self.body(x))
        for n in range(1, self.config.ups + 1):
            x = F.interpolate(x, scale_factor=2, mode="nearest")
            x = F.leaky_relu(self.get_submodule(f"conv_up{n}")(x), SLOPE)
        return self.conv_last(F.leaky_relu(self.conv_hr(x), SLOPE))
