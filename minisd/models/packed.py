"""Layers whose weights lie as oneDNN multiplies them, laid once when a model is loaded (`kernels/packed.py`).

A packed layer is never changed in place: adapters go beside it (`adapters.py`), reading its weight through
`dequantised`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from minisd.kernels import packed as products


class Packed(nn.Module):
    """What both kinds share: the packed weight, the bias, and the shape that the weight has in files."""

    def __init__(self, packed: Tensor, bias: Tensor | None, shape: torch.Size) -> None:
        super().__init__()
        self.packed, self.bias, self.shape = packed, bias, shape

    def __deepcopy__(self, memo: dict[int, object]) -> Packed:
        return self  # nothing in it changes: twins of a network share it as they share tensors

    def dequantised(self) -> Tensor:
        """The weight as in files, made anew."""
        return self.packed.to_dense().reshape(self.shape)


class PackedLinear(Packed):
    """nn.Linear, or a 1x1 convolution over tokens: ... i -> ... o."""

    def __init__(self, layer: nn.Linear | nn.Conv2d) -> None:
        packed = products.pack_linear(layer.weight.detach().flatten(1))
        super().__init__(packed, layer.bias, layer.weight.shape)

    def forward(self, x: Tensor) -> Tensor:
        return products.linear(x, self.packed, self.bias)


class PackedPointwise(PackedLinear):
    """`conv.PointwiseConv`: b i h w -> b o h w. oneDNN's own 1x1 convolution of a packed weight takes up to
    thirty times as long as this product over pixels."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class PackedConv(Packed):
    """nn.Conv2d, not of one pixel: b i h w -> b o h' w'."""

    def __init__(self, layer: nn.Conv2d) -> None:
        assert not isinstance(layer.padding, str), "these networks pad by numbers"
        geometry = list(layer.padding), list(layer.stride), list(layer.dilation), layer.groups
        packed = products.pack_conv(layer.weight.detach(), geometry)
        super().__init__(packed, layer.bias, layer.weight.shape)
        self.geometry = geometry
        self.stride, self.padding = layer.stride, layer.padding  # for what stands beside it

    def forward(self, x: Tensor) -> Tensor:
        return products.conv(x, self.packed, self.bias, self.geometry)
