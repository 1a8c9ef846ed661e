"""Products of integers: rows of activations made int8 as they come (W8A8), sums in int32, exact.

Dettmers et al. 2022 (arXiv:2208.07339) without outliers: one scale for each row of a linear layer, one for
each image of a convolution, symmetric around 0.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

int_mm = torch._int_mm  # pyright: ignore[reportPrivateImportUsage]  # torch has no public name for it
COLUMNS = 2**24  # bytes of a convolution's patches at a time
EXACT = 1024  # products of two int8 whose sum float32 holds exactly


def product(a: Tensor, b: Tensor) -> Tensor:
    """a b^T: int8 n m, int8 d m -> int32 n d."""
    kind = a.device.type
    if kind in ("cpu", "meta"):
        return int_mm(a, b.t())
    if kind != "cuda":
        return in_pieces(a, b)
    n, d = len(a), len(b)
    rows, edge = max(24, n + -n % 8) - n, -a.shape[1] % 8  # what cuBLASLt asks of sizes
    return int_mm(F.pad(a, (0, edge, 0, rows)), F.pad(b, (0, edge, 0, -d % 8)).t())[:n, :d]


def in_pieces(a: Tensor, b: Tensor) -> Tensor:
    """The same by float32, where torch has no product of integers."""
    pieces = zip(a.split(EXACT, dim=1), b.split(EXACT, dim=1), strict=True)
    return torch.stack([(x.float() @ y.float().t()).int() for x, y in pieces]).sum(0, dtype=torch.int32)


def to_int8(x: Tensor, dims: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """(codes, scales): one scale over these axes, which stay as 1."""
    wide = x.float()
    top = wide.abs().amax(dim=dims, keepdim=True)
    scale = torch.where(top > 0, top / 127, 1.0)
    return (wide / scale).round().to(torch.int8), scale


def linear(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    """x ... m, weight int8 [d, m], scale [d] -> ... d."""
    codes, by = to_int8(x.reshape(-1, x.shape[-1]), (1,))
    out = product(codes, weight).float() * by * scale
    out = out if bias is None else out + bias.float()
    return out.to(x.dtype).view(*x.shape[:-1], len(weight))


def conv(
    x: Tensor,
    weight: Tensor,
    scale: Tensor,
    bias: Tensor | None,
    stride: tuple[int, int],
    padding: tuple[int, int],
) -> Tensor:
    """x b c h w, weight int8 [d, c, k, l], scale [d] -> b d h' w'. Patches are laid out a few rows of the
    picture at a time."""
    codes, by = to_int8(x, (1, 2, 3))
    high, wide = weight.shape[2:]
    codes = F.pad(codes, (padding[1], padding[1], padding[0], padding[0]))
    patches = codes.unfold(2, high, stride[0]).unfold(3, wide, stride[1])  # b c h' w' k l, a view
    matrix = weight.reshape(len(weight), -1)
    out = x.new_empty(x.shape[0], len(weight), *patches.shape[2:4])
    step = max(1, COLUMNS // (patches.shape[3] * matrix.shape[1]))
    for image in range(x.shape[0]):
        for at in range(0, patches.shape[2], step):
            rows = patches[image, :, at : at + step].permute(1, 2, 0, 3, 4)
            made = product(rows.reshape(-1, matrix.shape[1]), matrix).float() * (by[image].view(()) * scale)
            made = made if bias is None else made + bias.float()
            out[image, :, at : at + step] = made.to(x.dtype).t().unflatten(1, (-1, patches.shape[3]))
    return out
