"""Large pictures through a network in overlapping tiles, blended linearly where they overlap.

Memory is that of one tile. What a tile cannot know is the rest of the picture: the GroupNorms and the
attention of the VAE see one tile at a time, so colours may differ slightly from the untiled result. One tile
that covers everything is the untiled result, bit for bit. Where a picture goes on at its opposite edge, tiles
lie around that edge as everywhere else.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from minisd.models.conv import NO_WRAP, Wrap


@dataclass(frozen=True)
class Span:
    """`length` places from `begin` on, of `total` along one axis, counted round and round. rise, fall:
    whether a neighbour shares its ends."""

    begin: int
    length: int
    total: int
    rise: bool = False
    fall: bool = False

    @property
    def whole(self) -> bool:
        return self.length == self.total

    def places(self, scale: Callable[[int], int], device: torch.device) -> Tensor:
        """Their indices on an axis that is scaled."""
        begin, length = scale(self.begin), scale(self.length)
        return torch.arange(begin, begin + length, device=device) % scale(self.total)


@dataclass(frozen=True)
class Tile:
    """A part of a picture. wrap: axes along which it is all of one that goes on at its opposite edge."""

    rows: Span
    columns: Span
    wrap: Wrap = NO_WRAP

    @property
    def whole(self) -> bool:
        return self.rows.whole and self.columns.whole

    def of(self, x: Tensor) -> Tensor:
        """The part of x [b c h w]; x itself, if that is all of it."""
        for axis, span in ((-2, self.rows), (-1, self.columns)):
            if not span.whole:
                x = x.index_select(axis, span.places(lambda n: n, x.device))
        return x


def starts(length: int, tile: int, overlap: int) -> list[int]:
    """Where tiles begin along one axis: evenly spread, the last one ending at `length`, each pair sharing >=
    `overlap`."""
    if tile >= length:
        return [0]
    count = -(-(length - overlap) // (tile - overlap))
    return [round(i * (length - tile) / (count - 1)) for i in range(count)]


def spans(length: int, tile: int, overlap: int, goes_on: bool) -> list[Span]:
    """The tiles of one axis; goes_on: it is a circle."""
    if tile >= length:
        return [Span(0, length, length)]
    if goes_on:
        count = -(-length // (tile - overlap))
        return [Span(i * length // count, tile, length, True, True) for i in range(count)]
    begins = starts(length, tile, overlap)
    return [Span(b, tile, length, b > 0, b != begins[-1]) for b in begins]


def tiles_of(
    height: int, width: int, *, tile: int, overlap: int, wrap: Wrap = NO_WRAP, down: int = 1
) -> list[Tile]:
    """Tiles of `tile` places on a side over height x width, row by row, in steps of `down`. Raises ValueError
    unless tile and overlap are multiples of it with 0 <= overlap < tile."""
    if not 0 <= overlap < tile or tile % down or overlap % down:
        raise ValueError(
            f"tile {tile} and overlap {overlap} must be multiples of {down} with 0 <= overlap < tile"
        )

    def along(length: int, goes_on: bool) -> list[Span]:
        if tile >= length:
            return [Span(0, length, length)]
        found = spans(length // down, tile // down, overlap // down, goes_on)
        return [Span(s.begin * down, s.length * down, length, s.rise, s.fall) for s in found]

    rows, columns = along(height, wrap[0]), along(width, wrap[1])
    return [Tile(r, c, (wrap[0] and r.whole, wrap[1] and c.whole)) for r in rows for c in columns]


def ramp(size: int, begin: bool, end: bool, overlap: int, like: Tensor) -> Tensor:
    """Weights [size] of one tile: 1 inside, falling to the border where a neighbour takes over."""
    weight = torch.ones(size, dtype=like.dtype, device=like.device)
    rise = torch.arange(1, overlap + 1, dtype=like.dtype, device=like.device) / (overlap + 1)
    if begin:
        weight[:overlap] = torch.minimum(weight[:overlap], rise)
    if end:
        weight[size - overlap :] = torch.minimum(weight[size - overlap :], rise.flip(0))
    return weight


def blended(
    answer: Callable[[Tile], Tensor], tiles: Sequence[Tile], *, overlap: int, up: int = 1, down: int = 1
) -> Tensor:
    """What `answer` says of each tile, b c h w, `up` pixels for each `down` of the tile, laid together."""
    if len(tiles) == 1:
        return answer(tiles[0])
    scale = lambda n: n * up // down  # noqa: E731
    total: Tensor | None = None
    weights: Tensor | None = None
    for tile in tiles:
        part = answer(tile)
        if total is None or weights is None:
            sides = scale(tile.rows.total), scale(tile.columns.total)
            total, weights = part.new_zeros(*part.shape[:2], *sides), part.new_zeros(sides)
        ramps = [
            ramp(scale(s.length), s.rise, s.fall, scale(overlap), part) for s in (tile.rows, tile.columns)
        ]
        weight = ramps[0][:, None] * ramps[1]
        rows, columns = (s.places(scale, part.device) for s in (tile.rows, tile.columns))
        total[..., rows[:, None], columns] += part * weight
        weights[rows[:, None], columns] += weight
    assert total is not None and weights is not None
    return total / weights


def in_parts(
    function: Callable[[Tensor, Wrap], Tensor],
    x: Tensor,
    *,
    tile: int,
    overlap: int,
    up: int = 1,
    down: int = 1,
    wrap: Wrap = NO_WRAP,
) -> Tensor:
    """function over tiles of x [b c h w]; it maps `down` input pixels to `up` output pixels in each
    direction, and is told along which axes its tile goes on at the opposite edge.

    tile, overlap: in input pixels, multiples of `down`; 0 <= overlap < tile. Raises ValueError otherwise.
    """
    tiles = tiles_of(x.shape[-2], x.shape[-1], tile=tile, overlap=overlap, wrap=wrap, down=down)
    return blended(lambda t: function(t.of(x), t.wrap), tiles, overlap=overlap, up=up, down=down)


def tiled(
    function: Callable[[Tensor], Tensor], x: Tensor, *, tile: int, overlap: int, up: int = 1, down: int = 1
) -> Tensor:
    """in_parts of a picture that ends at its edges."""
    return in_parts(lambda part, _: function(part), x, tile=tile, overlap=overlap, up=up, down=down)
