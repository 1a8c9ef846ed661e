"""Layers that are one operation of `minisd.kernels`, and which implementation each of them runs.

Parameters keep the names of files: a GroupNorm with the SiLU after it stands where GroupNorm stood. By
default each computes what torch's layers compute, bit for bit. A product whose layer was replaced (adapters
beside it, quantised weights) is left to that layer, whatever was chosen.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from minisd.kernels import Kernels
from minisd.kernels import fused as operations
from minisd.kernels.upsample import FOLDS
from minisd.models.conv import NO_WRAP, Conv2d, Wrap, around, wrapped
from minisd.models.once import Projections
from minisd.models.packed import PackedLinear


class GroupNorm(nn.GroupNorm):
    """GroupNorm, and with `silu` the SiLU that follows it: b c h w -> b c h w."""

    operation = "group_norm_silu"
    implementation: str = "torch"

    def __init__(self, groups: int, channels: int, *, eps: float, silu: bool) -> None:
        super().__init__(groups, channels, eps=eps)
        self.silu = silu

    def forward(self, input: Tensor) -> Tensor:
        weights = self.weight, self.bias, self.num_groups, self.eps
        return operations.group_norm_silu(input, *weights, silu=self.silu, implementation=self.implementation)


class AddNorm(nn.LayerNorm):
    """(x + residual, LayerNorm of it), over the last axis of tokens b n c."""

    operation = "layer_norm"
    implementation: str = "torch"

    def __init__(self, dim: int) -> None:
        super().__init__(dim, eps=1e-5)

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]  # the sum is needed, too
        self, input: Tensor, residual: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        weights = self.weight, self.bias, self.eps
        return operations.layer_norm(input, *weights, residual=residual, implementation=self.implementation)


class GEGLU(nn.Module):
    """value * gelu(gate) (Shazeer 2020, arXiv:2002.05202); the rows of proj are [value; gate]."""

    operation = "geglu"
    implementation: str = "torch"

    def __init__(self, dim: int, inner: int) -> None:
        super().__init__()
        self.proj = nn.Linear(dim, 2 * inner)

    def forward(self, x: Tensor) -> Tensor:
        """b n c -> b n inner."""
        if self.implementation == "avx512" and isinstance(self.proj, PackedLinear):
            weight = self.proj.packed
            return operations.geglu(x, weight, self.proj.bias, implementation=self.implementation)
        if self.implementation == "torch" or type(self.proj) is not nn.Linear:
            value, gate = self.proj(x).chunk(2, dim=-1)
            return value * F.gelu(gate)
        return operations.geglu(x, self.proj.weight, self.proj.bias, implementation=self.implementation)


class Upsample(nn.Module):
    """Every pixel doubled in height and width, then a 3x3 convolution."""

    operation = "upsample_conv"
    implementation: str = "nearest"

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = Conv2d(channels, channels, 3, padding=1)
        self.folded: Tensor | None = None  # the convolution's weights summed for `implementation`

    def forward(self, x: Tensor, size: tuple[int, int] | None = None, wrap: Wrap = NO_WRAP) -> Tensor:
        """b c h w to `size`, that of the next skip: an odd latent is halved upwards on the way down, so 2x
        would be one too many."""
        double = x.shape[2] * 2, x.shape[3] * 2
        size = double if size is None else size
        if self.implementation == "nearest" or size != double or type(self.conv) is not Conv2d:
            return around(self.conv, F.interpolate(x, size=size, mode="nearest"), wrap)
        assert self.conv.bias is not None
        weights = self.conv.weight, self.conv.bias, self.folded
        if wrap != NO_WRAP:
            x = wrapped(x, wrap, 1)
        out = operations.upsample_conv(x, *weights, implementation=self.implementation)
        top, left = (2 * goes_on for goes_on in wrap)
        return out if wrap == NO_WRAP else out[..., top : top + size[0], left : left + size[1]].contiguous()

    def fold(self) -> None:
        """Sum the weights once. To be called again when they change."""
        make = FOLDS.get(self.implementation) if type(self.conv) is Conv2d else None
        self.folded = None if make is None else make(self.conv.weight)


def use(network: nn.Module, kernels: Kernels) -> None:
    """Let every layer of the network run what `kernels` names for its operation. After its weights are in
    place; again when they have been replaced."""
    for module in network.modules():
        operation = getattr(module, "operation", None)
        if isinstance(operation, str):
            module.implementation = getattr(kernels, operation)
        if isinstance(module, Upsample):
            module.fold()
        if isinstance(module, Projections):
            module.fused = kernels.fused_qkv
            if module.fused:
                module.lay()
