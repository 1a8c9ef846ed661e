"""HyperTile: self-attention within tiles of the map instead of over all of it, whose cost grows with the
square of its tokens. Tiles lie side by side and are all of one size, the smallest that divides the map and is
not below the size that is asked for; a side that has no such divisor is not divided. Nothing is drawn at
random.

Idea: tfernd, HyperTile (2023), which draws the number of tiles anew in each layer, to hide their borders.
"""

from __future__ import annotations

from dataclasses import dataclass

from einops import rearrange
from torch import Tensor

from minisd.models.edits import Size, Then


def tile_side(length: int, wanted: int) -> int:
    """The smallest divisor of `length` that is at least `wanted`; length itself where that is less."""
    return next((n for n in range(max(1, wanted), length) if length % n == 0), length)


@dataclass(frozen=True)
class Tiles:
    """A `Regroup`. side: of a tile, in tokens."""

    side: int

    def __call__(self, x: Tensor, normed: Tensor, size: Size, then: Then) -> Tensor:
        h, w = (tile_side(n, self.side) for n in size)
        if (h, w) == size:
            return then(x, normed, size)
        rows, columns = size[0] // h, size[1] // w
        apart, whole = "(b rows columns) (h w) c", "b (rows h columns w) c"
        sizes = {"rows": rows, "columns": columns, "h": h, "w": w}
        tiles = [rearrange(t, f"{whole} -> {apart}", **sizes) for t in (x, normed)]
        return rearrange(then(tiles[0], tiles[1], (h, w)), f"{apart} -> {whole}", **sizes)
