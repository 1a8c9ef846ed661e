"""Doubling a picture and convolving it 3x3, as convolutions of the small picture: 16 products for each output
pixel's four neighbours instead of 36, and no doubled picture in memory.

Output pixel (2i + r, 2j + c) of the doubled picture sees rows 2i + r - 1 .. 2i + r + 1, which are the pixels
i - 1, i, i (r = 0) or i, i, i + 1 (r = 1) of the small one: two of the three taps fall together and their
weights add up. Exact but for the rounding of those sums.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def pairs(weight: Tensor, axis: int, odd: int) -> Tensor:
    """Three taps along `axis` as the two that an even (0) or odd (1) output pixel sees."""
    first, middle, last = weight.unbind(axis)
    both = (first, middle + last) if odd == 0 else (first + middle, last)
    return torch.stack(both, dim=axis)


def sub_pixel(weight: Tensor) -> Tensor:
    """weight [d, m, 3, 3] -> [2, 2, d, m, 2, 2]: the 2x2 convolutions of even and odd rows and columns.

    Summed in float32 or wider, and rounded once.
    """
    wide = weight.to(torch.promote_types(weight.dtype, torch.float32))
    rows = [pairs(wide, 2, odd) for odd in range(2)]
    return torch.stack([torch.stack([pairs(row, 3, odd) for odd in range(2)]) for row in rows]).to(
        weight.dtype
    )


def transposed(weight: Tensor) -> Tensor:
    """weight [d, m, 3, 3] -> [m, d, 4, 4] of conv_transpose2d(stride=2, padding=1).

    There, output pixel 2i + r takes tap k from input i' where 2 i' - 1 + k = 2i + r: taps 3 and 1 for r = 0
    (inputs i - 1 and i), taps 2 and 0 for r = 1 (inputs i and i + 1).
    """
    parts = sub_pixel(weight)  # r c d m 2 2
    taps = ((3, 1), (2, 0))  # of outputs r, from the input before to the one after
    out = weight.new_empty(weight.shape[1], weight.shape[0], 4, 4)
    for r in range(2):
        for c in range(2):
            for a, row in enumerate(taps[r]):
                for b, column in enumerate(taps[c]):
                    out[:, :, row, column] = parts[r, c, :, :, a, b].T
    return out


FOLDS: dict[str, Callable[[Tensor], Tensor]] = {"transposed": transposed, "sub_pixel": sub_pixel}
