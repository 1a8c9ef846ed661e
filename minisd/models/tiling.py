"""Large pictures through a network in overlapping tiles, blended linearly where they overlap.

Memory is that of one tile. What a tile cannot know is the rest of the picture: the GroupNorms and the
attention of the VAE see one tile at a time, so colours may differ slightly from the untiled result. One tile
that covers everything is the untiled result, bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def starts(length: int, tile: int, overlap: int) -> list[int]:
    """Where tiles begin along one axis: evenly spread, the last one ending at `length`, each pair sharing >=
    `overlap`."""
    if tile >= length:
        return [0]
    count = -(-(length - overlap) // (tile - overlap))
    return [round(i * (length - tile) / (count - 1)) for i in range(count)]


def ramp(size: int, begin: bool, end: bool, overlap: int, like: Tensor) -> Tensor:
    """Weights [size] of one tile: 1 inside, falling to the border where a neighbour takes over."""
    weight = torch.ones(size, dtype=like.dtype, device=like.device)
    rise = torch.arange(1, overlap + 1, dtype=like.dtype, device=like.device) / (overlap + 1)
    if begin:
        weight[:overlap] = rise
    if end:
        weight[size - overlap :] = rise.flip(0)
    return weight


def tiled(
    function: Callable[[Tensor], Tensor], x: Tensor, *, tile: int, overlap: int, up: int = 1, down: int = 1
) -> Tensor:
    """function over tiles of x [b c h w]; it maps `down` input pixels to `up` output pixels in each
    direction.

    tile, overlap: in input pixels, multiples of `down`; 0 <= overlap < tile. Raises ValueError otherwise.
    """
    if not 0 <= overlap < tile or tile % down or overlap % down:
        raise ValueError(
            f"tile {tile} and overlap {overlap} must be multiples of {down} with 0 <= overlap < tile"
        )
    height, width = x.shape[-2:]
    if tile >= height and tile >= width:
        return function(x)
    scale = lambda n: n * up // down  # noqa: E731
    total: Tensor | None = None
    weights: Tensor | None = None
    rows, columns = (starts(n // down, tile // down, overlap // down) for n in (height, width))
    for row in rows:
        for column in columns:
            top, left = row * down, column * down
            part = function(x[..., top : top + tile, left : left + tile])
            if total is None or weights is None:
                total = part.new_zeros(*part.shape[:2], scale(height), scale(width))
                weights = part.new_zeros(scale(height), scale(width))
            h, w = part.shape[-2:]
            vertical = ramp(h, row > 0, row != rows[-1], scale(overlap), part)
            horizontal = ramp(w, column > 0, column != columns[-1], scale(overlap), part)
            weight = vertical[:, None] * horizontal
            at = (..., slice(scale(top), scale(top) + h), slice(scale(left), scale(left) + w))
            total[at] += part * weight
            weights[at] += weight
    assert total is not None and weights is not None
    return total / weights
