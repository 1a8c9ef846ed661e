"""In Triton: GroupNorm with SiLU over channels-last pictures, and LayerNorm with a residual added before it.

GroupNorm runs in three launches: sums of parts of fixed size for each channel, one merge for each group, the
application. Every sum has one writer and a fixed order, no atomics; parts keep a mean and a sum of squares
about it and are merged by the formula of Chan et al. 1983, so a mean far from zero costs no accuracy.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from minisd.kernels.launch import launch

PART = 512  # pixels of one part, whatever the batch
ROWS = 32  # pixels of a tile
CHANNELS = 64  # of a tile
MERGED = 128  # parts that a merge reads at a time


@triton.jit
def parts_kernel(
    X,
    MEAN,
    SQUARES,
    n,
    parts,
    C: tl.constexpr,
    PART: tl.constexpr,
    ROWS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """Mean and sum of squared differences of each channel over one part of the pixels of [b, n, C]."""
    part = tl.program_id(0)
    channels = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    image = tl.program_id(2).to(tl.int64)
    in_channels = channels < C
    X += image * n * C
    begin = part * PART
    # differences to the part's first pixel: sums of squares of them stay small where a mean is large
    first = tl.load(X + begin.to(tl.int64) * C + channels, mask=in_channels, other=0.0).to(tl.float32)
    sums = tl.zeros([CHANNELS], tl.float32)
    squares = tl.zeros([CHANNELS], tl.float32)
    for start in range(0, tl.minimum(PART, n - begin), ROWS):
        rows = begin + start + tl.arange(0, ROWS)
        inside = (rows[:, None] < n) & in_channels[None, :]
        x = tl.load(X + rows.to(tl.int64)[:, None] * C + channels[None, :], mask=inside, other=0.0)
        x = tl.where(inside, x.to(tl.float32) - first[None, :], 0.0)
        sums += tl.sum(x, 0)
        squares += tl.sum(x * x, 0)
    count = tl.minimum(PART, n - begin).to(tl.float32)
    at = (image * parts + part) * C + channels
    tl.store(MEAN + at, first + sums / count, mask=in_channels)
    tl.store(SQUARES + at, squares - sums * (sums / count), mask=in_channels)


@triton.jit
def merge_kernel(
    MEAN,
    SQUARES,
    GROUP_MEAN,
    GROUP_SCALE,
    n,
    parts,
    eps,
    C: tl.constexpr,
    GROUPS: tl.constexpr,
    WIDTH: tl.constexpr,
    PART: tl.constexpr,
    MERGED: tl.constexpr,
):
    """Mean and 1 / standard deviation of one group of one image from all its parts, in their order."""
    group = tl.program_id(0)
    image = tl.program_id(1).to(tl.int64)
    per: tl.constexpr = C // GROUPS
    channel = tl.arange(0, WIDTH)
    base = image * parts * C + group * per
    total = tl.zeros([MERGED, WIDTH], tl.float32)
    for start in range(0, parts, MERGED):
        part = start + tl.arange(0, MERGED)
        inside = (part[:, None] < parts) & (channel[None, :] < per)
        at = base + part.to(tl.int64)[:, None] * C + channel[None, :]
        count = tl.minimum(PART, n - part * PART).to(tl.float32)
        total += tl.where(inside, tl.load(MEAN + at, mask=inside, other=0.0) * count[:, None], 0.0)
    elements = n.to(tl.float32) * per
    mean = tl.sum(tl.sum(total, 1), 0) / elements
    spread = tl.zeros([MERGED, WIDTH], tl.float32)
    for start in range(0, parts, MERGED):
        part = start + tl.arange(0, MERGED)
        inside = (part[:, None] < parts) & (channel[None, :] < per)
        at = base + part.to(tl.int64)[:, None] * C + channel[None, :]
        count = tl.minimum(PART, n - part * PART).to(tl.float32)
        away = tl.load(MEAN + at, mask=inside, other=0.0) - mean
        squares = tl.load(SQUARES + at, mask=inside, other=0.0) + away * away * count[:, None]
        spread += tl.where(inside, squares, 0.0)
    variance = tl.sum(tl.sum(spread, 1), 0) / elements
    tl.store(GROUP_MEAN + image * GROUPS + group, mean)
    tl.store(GROUP_SCALE + image * GROUPS + group, 1.0 / tl.sqrt(variance + eps))


@triton.jit
def apply_kernel(
    X,
    Y,
    GROUP_MEAN,
    GROUP_SCALE,
    WEIGHT,
    BIAS,
    n,
    C: tl.constexpr,
    GROUPS: tl.constexpr,
    ROWS: tl.constexpr,
    CHANNELS: tl.constexpr,
    SILU: tl.constexpr,
):
    """(x - mean) / deviation * weight + bias, and SiLU, for one tile of [b, n, C]."""
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    channels = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    image = tl.program_id(2).to(tl.int64)
    in_channels = channels < C
    group = image * GROUPS + channels // (C // GROUPS)
    mean = tl.load(GROUP_MEAN + group, mask=in_channels, other=0.0)
    scale = tl.load(GROUP_SCALE + group, mask=in_channels, other=0.0)
    weight = tl.load(WEIGHT + channels, mask=in_channels, other=0.0).to(tl.float32)
    bias = tl.load(BIAS + channels, mask=in_channels, other=0.0).to(tl.float32)
    inside = (rows[:, None] < n) & in_channels[None, :]
    at = image * n * C + rows.to(tl.int64)[:, None] * C + channels[None, :]
    x = tl.load(X + at, mask=inside, other=0.0).to(tl.float32)
    y = (x - mean[None, :]) * (scale * weight)[None, :] + bias[None, :]
    if SILU:
        y = y / (1.0 + tl.exp(-y))
    tl.store(Y + at, y.to(Y.dtype.element_ty), mask=inside)


@triton.jit
def layer_norm_kernel(
    X, R, TOTAL, Y, WEIGHT, BIAS, x_row, r_row, width, eps, WIDTH: tl.constexpr, RESIDUAL: tl.constexpr
):
    """One row in registers: the sum with the residual is stored and normalised in one pass over memory."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, WIDTH)
    inside = column < width
    x = tl.load(X + row * x_row + column, mask=inside, other=0.0)
    if RESIDUAL:
        x = x.to(tl.float32) + tl.load(R + row * r_row + column, mask=inside, other=0.0).to(tl.float32)
        # the norm sees what the next layers see: the sum as it is stored
        x = x.to(TOTAL.dtype.element_ty)
        tl.store(TOTAL + row * width + column, x, mask=inside)
    x = x.to(tl.float32)
    mean = tl.sum(x, 0) / width
    centred = tl.where(inside, x - mean, 0.0)
    scale = 1.0 / tl.sqrt(tl.sum(centred * centred, 0) / width + eps)
    weight = tl.load(WEIGHT + column, mask=inside, other=0.0).to(tl.float32)
    bias = tl.load(BIAS + column, mask=inside, other=0.0).to(tl.float32)
    tl.store(Y + row * width + column, (centred * scale * weight + bias).to(Y.dtype.element_ty), mask=inside)


def group_norm_silu(
    x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float, *, silu: bool = True
) -> Tensor:
    """b c h w with channels last in memory, and so comes the result."""
    b, c, height, width = x.shape
    n = height * width
    x = x.contiguous(memory_format=torch.channels_last)
    out = torch.empty_like(x, memory_format=torch.channels_last)
    parts = triton.cdiv(n, PART)
    mean, squares = torch.empty(2, b, parts, c, dtype=torch.float32, device=x.device)
    group_mean, group_scale = torch.empty(2, b, groups, dtype=torch.float32, device=x.device)
    tiles = triton.cdiv(c, CHANNELS)
    launch(
        parts_kernel,
        (parts, tiles, b),
        (x, mean, squares, n, parts),
        {"C": c, "PART": PART, "ROWS": ROWS, "CHANNELS": CHANNELS},
        warps=4,
    )
    launch(
        merge_kernel,
        (groups, b),
        (mean, squares, group_mean, group_scale, n, parts, eps),
        {
            "C": c,
            "GROUPS": groups,
            "WIDTH": triton.next_power_of_2(c // groups),
            "PART": PART,
            "MERGED": MERGED,
        },
        warps=4,
    )
    launch(
        apply_kernel,
        (triton.cdiv(n, ROWS), tiles, b),
        (x, out, group_mean, group_scale, weight, bias, n),
        {"C": c, "GROUPS": groups, "ROWS": ROWS, "CHANNELS": CHANNELS, "SILU": silu},
        warps=4,
    )
    return out


def layer_norm(
    x: Tensor, weight: Tensor, bias: Tensor, eps: float, *, residual: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """(x + residual, LayerNorm of it), ... d."""
    width = x.shape[-1]
    rows = x.reshape(-1, width)
    other = rows if residual is None else residual.expand(x.shape).reshape(-1, width)
    out = torch.empty_like(rows, memory_format=torch.contiguous_format)
    total = rows if residual is None else torch.empty_like(out)
    launch(
        layer_norm_kernel,
        (len(rows),),
        (rows, other, total, out, weight, bias, rows.stride(0), other.stride(0), width, eps),
        {"WIDTH": triton.next_power_of_2(width), "RESIDUAL": residual is not None},
        warps=4,
    )
    return x if residual is None else total.view(x.shape), out.view(x.shape)
