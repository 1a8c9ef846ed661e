"""Convolutions whose result on a CPU does not depend on the number of threads. Weights keep the names and
shapes of files.

Two of torch's CPU paths split the sum over input channels between threads, so that float32 results differ in
the last bits (measured with torch 2.13: 6e-7). Both are walked around; the arithmetic is the same.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

LONG = 1920  # channels: matrix products over no more of them give the same bits on any number of threads
SMALL = 20480  # elements: below, torch does not give a single image to oneDNN but multiplies matrices itself


class Conv2d(nn.Conv2d):
    """nn.Conv2d that asks oneDNN by name for small single images, where torch would not."""

    def forward(self, input: Tensor) -> Tensor:
        if (
            input.shape[0] == 1
            and input.dtype == torch.float32
            and input.device.type == "cpu"
            and self.in_channels >= 32  # sums over fewer channels are not split
            and input.numel() <= SMALL
            and torch.backends.mkldnn.is_available()
        ):
            assert not isinstance(self.padding, str), "these networks pad by numbers"
            return torch.mkldnn_convolution(
                input, self.weight, self.bias, self.padding, self.stride, self.dilation, self.groups
            )
        return super().forward(input)


class PointwiseConv(nn.Conv2d):
    """A 1x1 convolution [out, in, 1, 1], on a CPU computed as a matrix product over pixels."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, 1)

    def forward(self, input: Tensor) -> Tensor:
        """b c h w -> b c' h w."""
        if input.device.type != "cpu":
            return super().forward(input)
        assert self.bias is not None
        pixels, weight = input.flatten(2), self.weight.flatten(1)
        out = self.bias[:, None]
        for start in range(0, self.in_channels, LONG):  # sums longer than this are split between threads
            part = slice(start, start + LONG)
            w = weight[:, part].expand(len(pixels), -1, -1)
            out = torch.baddbmm(out, w, pixels[:, part])
        return out.unflatten(-1, input.shape[2:])
