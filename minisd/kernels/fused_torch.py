"""The other operations by torch: what the networks run unless something else is asked for by name."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from minisd.kernels.upsample import sub_pixel, transposed


def group_norm_silu(
    x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float, *, silu: bool = True
) -> Tensor:
    """b c h w -> b c h w."""
    out = F.group_norm(x, groups, weight, bias, eps)
    return F.silu(out, inplace=True) if silu else out


def layer_norm(
    x: Tensor, weight: Tensor, bias: Tensor, eps: float, *, residual: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """(x + residual, LayerNorm of it), ... d."""
    total = x if residual is None else x + residual
    return total, F.layer_norm(total, (total.shape[-1],), weight, bias, eps)


def geglu(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """... m -> ... d, weight [2 d, m]."""
    value, gate = F.linear(x, weight, bias).chunk(2, dim=-1)
    return value * F.gelu(gate)


def guidance(
    cond: Tensor, uncond: Tensor, x: Tensor, scale: float, keep: float, add: float, ratio: float
) -> tuple[Tensor, Tensor]:
    """(denoised, x after one Euler step)."""
    guided = uncond + scale * (cond - uncond)
    denoised = keep * x + add * guided
    return denoised, ratio * x + (1 - ratio) * denoised


def upsample_nearest(x: Tensor, weight: Tensor, bias: Tensor, folded: Tensor | None = None) -> Tensor:
    """As written: every pixel four times, then a 3x3 convolution."""
    return F.conv2d(F.interpolate(x, scale_factor=2.0, mode="nearest"), weight, bias, padding=1)


def upsample_transposed(x: Tensor, weight: Tensor, bias: Tensor, folded: Tensor | None = None) -> Tensor:
    """One transposed convolution with summed weights."""
    return F.conv_transpose2d(x, transposed(weight) if folded is None else folded, bias, stride=2, padding=1)


def upsample_sub_pixel(x: Tensor, weight: Tensor, bias: Tensor, folded: Tensor | None = None) -> Tensor:
    """Four 2x2 convolutions with summed weights, one for each pixel of the doubled grid."""
    height, width = x.shape[-2:]
    weights, edge = sub_pixel(weight) if folded is None else folded, F.pad(x, (1, 1, 1, 1))
    out = x.new_empty(len(x), len(weight), 2 * height, 2 * width)
    for row in range(2):
        for column in range(2):
            seen = edge[:, :, row : row + height + 1, column : column + width + 1]
            out[:, :, row::2, column::2] = F.conv2d(seen, weights[row, column], bias)
    return out


def quantised_linear(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None = None) -> Tensor:
    """x ... m, weight int8 [d, m], scale [d] -> ... d. The scale, one number for each
    output, comes after the product."""
    out = F.linear(x, weight.to(x.dtype)) * scale.to(x.dtype)
    return out if bias is None else out + bias
