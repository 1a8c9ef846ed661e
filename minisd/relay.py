"""Who answers a solver in one run: a network, another that takes over from it, each perhaps tile by tile."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from minisd.denoiser import Denoiser
from minisd.models.tiling import Tile
from minisd.refiner import handed_over
from minisd.samplers.schedule import SigmaTable
from minisd.tiles import in_tiles


@dataclass(frozen=True)
class Relay:
    """Two Denoisers in one run. share: steps that the first makes. tiles: of the latents, sharing `overlap`
    with their neighbours; none: they are seen whole."""

    first: Denoiser
    second: Denoiser | None = None
    share: int = 0
    tiles: tuple[Tile, ...] = ()
    overlap: int = 0

    @property
    def table(self) -> SigmaTable:
        return self.first.table

    @property
    def dtype(self) -> torch.dtype:
        return self.first.dtype

    def at_tile(self, tile: Tile) -> Relay:
        """What is to be said of one tile."""
        second = None if self.second is None else self.second.at_tile(tile)
        return Relay(self.first.at_tile(tile), second, self.share)

    def denoise(self) -> Callable[[Tensor, float], Tensor]:
        """As Denoiser.denoise."""
        if self.tiles:
            return in_tiles(lambda tile: self.at_tile(tile).denoise(), self.tiles, self.overlap)
        first = self.first.denoise()
        if self.second is None:
            return first
        return handed_over(first, self.second.denoise(), self.first.sigmas, self.share)

    def denoise_both(self) -> Callable[[Tensor, float], tuple[Tensor, Tensor]]:
        """As Denoiser.denoise_both."""
        if self.tiles:
            return in_tiles(lambda tile: self.at_tile(tile).denoise_both(), self.tiles, self.overlap)
        first = self.first.denoise_both()
        if self.second is None:
            return first
        return handed_over(first, self.second.denoise_both(), self.first.sigmas, self.share)
