"""Linear layers and convolutions over weights stored in few bits (`quantise/schemes.py`).

They stand where plain layers stood, under the same names, with the tensors that the stored form has. The
weight is widened for each call and let go after it, in the dtype that is computed in; w8a8 multiplies
integers. int8 in a linear layer is an operation of `minisd.kernels`, with an implementation by name.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minisd.kernels import fused as operations
from minisd.models.conv import PointwiseConv, conv2d, pointwise
from minisd.quantise import dynamic
from minisd.quantise.schemes import Shape, dequantise, form_of


class Quantised(nn.Module):
    """weight, scale_weight and perhaps low_weight, and a bias. dtype: that a wide weight is made in where
    nothing says another."""

    weight: Tensor
    scale_weight: Tensor

    def __init__(self, scheme: str, shape: Shape, bias: bool, dtype: torch.dtype) -> None:
        super().__init__()
        self.scheme, self.shape, self.dtype = scheme, shape, dtype
        self.stored = form_of(scheme, shape)
        for name, (kind, size) in self.stored.items():
            self.register_parameter(name, empty(size, kind))
        self.register_parameter("bias", empty(shape[:1], dtype) if bias else None)
        self.bias: Tensor | None

    def dequantised(self, dtype: torch.dtype | None = None) -> Tensor:
        """The weight that is stored, wide."""
        form = {name: getattr(self, name) for name in self.stored}
        return dequantise(form, self.scheme, self.shape, dtype or self.dtype)

    def tokens(self, x: Tensor) -> Tensor:
        """... i -> ... o: a matrix product, also of a 1x1 convolution."""
        if self.scheme == "w8a8":
            return dynamic.linear(x, self.weight.flatten(1), self.scale_weight, self.bias)
        return F.linear(x, self.dequantised(x.dtype).flatten(1), self.bias)


def empty(shape: Shape, dtype: torch.dtype) -> nn.Parameter:
    return nn.Parameter(torch.empty(shape, dtype=dtype), requires_grad=False)


class QuantisedLinear(Quantised):
    operation = "quantised_linear"
    implementation: str = "torch"

    def forward(self, x: Tensor) -> Tensor:
        """... i -> ... o."""
        if self.scheme != "int8":
            return self.tokens(x)
        weights = self.weight, self.scale_weight, self.bias
        return operations.quantised_linear(x, *weights, implementation=self.implementation)


class QuantisedConv2d(Quantised):
    def __init__(self, scheme: str, shape: Shape, bias: bool, dtype: torch.dtype, layer: nn.Conv2d) -> None:
        """layer: whose stride and padding these are."""
        super().__init__(scheme, shape, bias, dtype)
        assert not isinstance(layer.padding, str), "these networks pad by numbers"
        self.stride, self.padding = pair(layer.stride), pair(layer.padding)
        self.of_pixels = isinstance(layer, PointwiseConv)

    def forward(self, x: Tensor) -> Tensor:
        """b c h w -> b c' h' w', or tokens b n c for a 1x1 convolution."""
        if x.ndim == 3:
            return self.tokens(x)
        if self.scheme == "w8a8":
            weights = self.weight, self.scale_weight, self.bias
            return dynamic.conv(x, *weights, self.stride, self.padding)
        weight = self.dequantised(x.dtype)
        if self.of_pixels and self.bias is not None:
            return pointwise(x, weight, self.bias)
        return conv2d(x, weight, self.bias, self.stride, self.padding)


def pair(numbers: tuple[int, ...]) -> tuple[int, int]:
    return numbers[0], numbers[1]


def quantised(network: nn.Module, layers: Iterable[tuple[str, str]], dtype: torch.dtype) -> None:
    """Put layers for stored weights in place of plain ones, in place, their weights still to come. layers:
    (module, scheme); `dtype` is computed in. Layers that the network lacks are passed over."""
    modules = dict(network.named_modules())
    for name, scheme in layers:
        layer = modules.get(name)
        if layer is None:
            continue
        assert isinstance(layer, nn.Linear | nn.Conv2d), f"{name} is no product"
        shape, bias = tuple(layer.weight.shape), layer.bias is not None
        with torch.device("meta"):
            made: nn.Module = (
                QuantisedLinear(scheme, shape, bias, dtype)
                if isinstance(layer, nn.Linear)
                else QuantisedConv2d(scheme, shape, bias, dtype, layer)
            )
        parent, _, last = name.rpartition(".")
        network.get_submodule(parent).register_module(last, made)
