"""SRVGGNetCompact, Real-ESRGAN's small upscaler: convolutions and PReLU in a row, one pixel shuffle.

Paper: Wang et al. 2021 (arXiv:2107.10833). Reference: SRVGGNetCompact of xinntao/Real-ESRGAN, whose
parameter names these are.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from minisd.config import CompactConfig
from minisd.models.conv import Conv2d


class Compact(nn.Module):
    """Picture b c h w, values 0..1 -> b c (scale h) (scale w): a residual to the picture enlarged."""

    def __init__(self, config: CompactConfig) -> None:
        super().__init__()
        self.config = config
        c, w, out = config.channels, config.width, config.channels * config.scale**2
        layers: list[nn.Module] = []
        for n in range(config.convs - 1):
            layers += [Conv2d(w if n else c, w, 3, padding=1), nn.PReLU(w)]
        self.body = nn.ModuleList([*layers, Conv2d(w, out, 3, padding=1)])

    def forward(self, x: Tensor) -> Tensor:
        h = x
        for layer in self.body:
            h = layer(h)
        enlarged = F.interpolate(x, scale_factor=self.config.scale, mode="nearest")
        return F.pixel_shuffle(h, self.config.scale) + enlarged
