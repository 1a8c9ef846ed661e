"""Tiled diffusion: at every step the network sees overlapping tiles of a large picture, and what it says of
them is averaged (MultiDiffusion, Bar-Tal et al. 2023, arXiv:2302.08113), with weights that fall towards a
tile's border. One tile that covers everything is the plain run, bit for bit.

Each tile has a denoiser of its own, which sees its part of everything that has a place in the picture:
further channels, regions, hints of control networks, APG's running average.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar, cast

import torch
from torch import Tensor

from minisd.models.tiling import Tile, blended

Answer = TypeVar("Answer", Tensor, tuple[Tensor, Tensor])


def in_tiles(
    make: Callable[[Tile], Callable[[Tensor, float], Answer]], tiles: Sequence[Tile], overlap: int
) -> Callable[[Tensor, float], Answer]:
    """denoise(x, sigma) over tiles of x [b c h w], in latents, by the denoisers that `make` gives for each;
    both answers, where they give two."""
    own = [make(tile) for tile in tiles]
    if len(own) == 1:
        return own[0]

    def call(x: Tensor, sigma: float) -> Answer:
        answers = [denoise(tile.of(x), sigma) for tile, denoise in zip(tiles, own, strict=True)]
        two = isinstance(answers[0], tuple)
        parts = iter([torch.cat(a, dim=1) if isinstance(a, tuple) else a for a in answers])
        out = blended(lambda _: next(parts), tiles, overlap=overlap)
        return cast(Answer, tuple(out.chunk(2, dim=1)) if two else out)

    return call
