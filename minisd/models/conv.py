"""Convolutions whose result on a CPU depends neither on the number of threads nor on the batch. Weights keep
the names and shapes of files.

torch's CPU paths for small single images and for 1x1 convolutions split sums between threads, and products
with few rows take another path than those with many, so that float32 results differ in the last bits
(measured with torch 2.13: 6e-7). They are walked around; the arithmetic is the same.
`tests/test_invariance.py` switches each rule off and sees bits change.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Wrap = tuple[bool, bool]  # whether a picture goes on at its opposite edge: down, across
NO_WRAP: Wrap = (False, False)
LONG = 1920  # channels: matrix products over no more of them give the same bits on any number of threads
STRIP = 2**26  # bytes of pixels that oneDNN is given at a time where there are more than HUGE
HUGE = 2**28
SMALL = 20480  # elements: below, torch does not give a single image to oneDNN but multiplies matrices itself


def each_alone(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """function over the rows of x [b ...] one at a time on a CPU, where a product with few rows takes another
    path than one with many; all together elsewhere."""
    if x.shape[0] == 1 or x.device.type != "cpu":
        return function(x)
    return torch.cat([function(row) for row in x.split(1)])


def wrapped(x: Tensor, wrap: Wrap, by: int) -> Tensor:
    """x [b c h w] with `by` pixels more on both sides along the axes of `wrap`, those of its opposite edge.
    by may be more than x has."""
    for axis, goes_on in zip((-2, -1), wrap, strict=True):
        if goes_on:
            length = x.shape[axis]
            places = torch.arange(-by, length + by, device=x.device) % length
            x = x.index_select(axis, places)
    return x


def around(layer: Callable[[Tensor], Tensor], x: Tensor, wrap: Wrap, stride: int = 1) -> Tensor:
    """layer(x), a 3x3 convolution padded by 1, as if the picture went on at its opposite edge along the axes
    of `wrap`. The layer, of any kind, sees a wider picture, and what its zeros touched is cut off."""
    if wrap == NO_WRAP:
        return layer(x)
    rows, columns = (-(-n // stride) for n in x.shape[-2:])
    out = layer(wrapped(x, wrap, stride))
    top, left = (int(goes_on) for goes_on in wrap)
    return out[..., top : top + rows, left : left + columns].contiguous()


def last_around(layers: nn.Sequential, x: Tensor, wrap: Wrap) -> Tensor:
    """layers(x), the last of them a 3x3 convolution that goes `around`."""
    if wrap == NO_WRAP:
        return layers(x)
    *before, last = layers
    for layer in before:
        x = layer(x)
    return around(last, x, wrap)


def per_token(layer: nn.Module, tokens: Tensor) -> Tensor:
    """A linear layer or a 1x1 convolution over tokens b n c. Another kind of layer (quantised, with adapters
    beside it) takes tokens itself."""
    if isinstance(layer, nn.Linear | nn.Conv2d):
        return F.linear(tokens, layer.weight.flatten(1), layer.bias)
    return layer(tokens)


def conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: tuple[int, ...],
    padding: tuple[int, ...],
    dilation: tuple[int, ...] = (1, 1),
    groups: int = 1,
) -> Tensor:
    """b c h w -> b c' h' w'."""
    more = weight, bias, stride, padding, dilation, groups
    plain = tuple(stride) == tuple(padding) == tuple(dilation) == (1, 1) and weight.shape[2:] == (3, 3)
    if x.nbytes > HUGE and x.device.type == "cpu" and plain:
        return in_strips(lambda part: taken_whole(part, *more), x, len(weight))
    return taken_whole(x, *more)


def taken_whole(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: tuple[int, ...],
    padding: tuple[int, ...],
    dilation: tuple[int, ...],
    groups: int,
) -> Tensor:
    """conv2d in one call."""
    if (
        x.shape[0] == 1
        and x.dtype == torch.float32
        and x.device.type == "cpu"
        and x.numel() <= SMALL
        and torch.backends.mkldnn.is_available()
    ):
        return torch.mkldnn_convolution(x, weight, bias, padding, stride, dilation, groups)
    return F.conv2d(x, weight, bias, stride, padding, dilation, groups)


def in_strips(conv: Callable[[Tensor], Tensor], x: Tensor, channels: int) -> Tensor:
    """conv(x), a 3x3 convolution padded by 1, some rows at a time: the same bits (measured, and tested)."""
    height = x.shape[2]
    rows = max(1, height * STRIP // x.nbytes)
    out = x.new_empty(x.shape[0], channels, *x.shape[2:])
    for start in range(0, height, rows):
        stop = min(start + rows, height)
        top, bottom = max(start - 1, 0), min(stop + 1, height)
        out[:, :, start:stop] = conv(x[:, :, top:bottom])[:, :, start - top : stop - top]
    return out


def beside(x: Tensor, weight: Tensor) -> int:
    """Bytes that a convolution on a CPU takes beside its operands and its result (measured): oneDNN's copies
    of what it reads, in a layout of its own."""
    if weight.shape[-1] == 1:
        return 0
    return weight.nbytes + (x.nbytes if x.nbytes <= HUGE else 3 * STRIP)


def parts_of(channels: int) -> list[slice]:
    """Sums over more than `LONG` channels, which would be split between threads, in parts."""
    return [slice(start, start + LONG) for start in range(0, channels, LONG)]


def pointwise(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """A 1x1 convolution [o, i, 1, 1], on a CPU a matrix product over pixels: b c h w -> b c' h w."""
    if x.device.type != "cpu":
        return F.conv2d(x, weight, bias)
    matrix = weight.flatten(1)
    parts = parts_of(matrix.shape[1])

    def one(image: Tensor) -> Tensor:
        if image.is_contiguous(memory_format=torch.channels_last) and not image.is_contiguous():
            out = bias
            pixels = image[0].permute(1, 2, 0).flatten(0, 1)  # h w c -> (h w) c, a view
            for part in parts:
                out = torch.addmm(out, pixels[:, part], matrix[:, part].T)
            return out.unflatten(0, image.shape[2:]).permute(2, 0, 1)[None]
        pixels, out = image[0].flatten(1), bias[:, None]
        for part in parts:
            out = torch.addmm(out, matrix[:, part], pixels[part])
        return out.unflatten(-1, image.shape[2:])[None]

    return each_alone(one, x)


class Conv2d(nn.Conv2d):
    """nn.Conv2d that asks oneDNN by name for small single images, where torch would not."""

    def forward(self, input: Tensor) -> Tensor:
        assert not isinstance(self.padding, str), "these networks pad by numbers"
        return conv2d(input, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


class PointwiseConv(nn.Conv2d):
    """A 1x1 convolution [out, in, 1, 1] by `pointwise`."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, 1)

    def forward(self, input: Tensor) -> Tensor:
        """b c h w -> b c' h w."""
        assert self.bias is not None
        return pointwise(input, self.weight, self.bias)
