"""ControlNet-LLLite: before a projection of a UNet's attention, a small network adds to the tokens what it
makes of them and of a picture.

Reference: kohya-ss/sd-scripts, networks/control_net_lllite.py and docs/train_lllite_README.md; there is no
paper. Parameter names are those of its files. What it reads of the picture does not depend on the latents and
is made once in a run. Left out: modules before convolutions, which no published file has.

    picture -- conditioning1 --+
    x -- down ---------------- cat -- mid -- up -- * weight -- + x -- the projection
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minisd.config import LLLiteConfig
from minisd.models.conv import Conv2d, per_token


class LLLiteModule(nn.Module):
    """Of one projection with `width` inputs."""

    def __init__(self, width: int, strides: tuple[int, ...], hint_dim: int, inner: int) -> None:
        super().__init__()
        half = hint_dim // 2
        widths = (3, *[half] * (len(strides) - 1), hint_dim)
        layers: list[nn.Module] = []
        for a, b, stride in zip(widths, widths[1:], strides, strict=False):
            layers += [Conv2d(a, b, stride, stride=stride), nn.ReLU()]
        self.conditioning1 = nn.Sequential(*layers[:-1])
        self.down = nn.Sequential(nn.Linear(width, inner))
        self.mid = nn.Sequential(nn.Linear(inner + hint_dim, inner))
        self.up = nn.Sequential(nn.Linear(inner, width))

    def read(self, hint: Tensor) -> Tensor:
        """Picture 1 3 H W, values -1..1 -> its tokens 1 n hint_dim."""
        return self.conditioning1(hint).flatten(2).transpose(1, 2).contiguous()

    def forward(self, x: Tensor, seen: Tensor) -> Tensor:
        """x b n width, seen 1 n hint_dim -> what is to be added to x."""
        inner = F.relu(per_token(self.down[0], x))
        both = torch.cat([seen.expand(len(x), -1, -1), inner], dim=2)
        return per_token(self.up[0], F.relu(per_token(self.mid[0], both)))


class LLLite(nn.Module):
    """The modules of a file, each under its name there."""

    def __init__(self, config: LLLiteConfig) -> None:
        super().__init__()
        self.control = config
        for name, _, width, strides in config.places:
            self.add_module(name, LLLiteModule(width, strides, config.hint_dim, config.inner))

    def of(self, name: str) -> LLLiteModule:
        module = self.get_submodule(name)
        assert isinstance(module, LLLiteModule)
        return module

    def read(self, hint: Tensor) -> tuple[Tensor, ...]:
        """Of a picture 1 3 H W, values 0..1: its tokens for each place."""
        return tuple(self.of(name).read(hint * 2 - 1) for name, *_ in self.control.places)
