"""Who answers a solver in one run: a network, another that takes over from it, each perhaps tile by tile."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from minisd.denoiser import Denoiser
from minisd.refiner import handed_over
from minisd.samplers.schedule import SigmaTable
from minisd.tiles import in_tiles


@dataclass(frozen=True)
class Relay:
    """Two Denoisers in one run. share: steps that the first makes. tile: latents on a side; None: all."""

    first: Denoiser
    second: Denoiser | None = None
    share: int = 0
    tile: int | None = None

    @property
    def table(self) -> SigmaTable:
        return self.first.table

    @property
    def dtype(self) -> torch.dtype:
        return self.first.dtype

    def denoise(self) -> Callable[[Tensor, float], Tensor]:
        """As Denoiser.denoise."""
        first = self.first.denoise()
        if self.second is not None:
            first = handed_over(first, self.second.denoise(), self.first.sigmas, self.share)
        return first if self.tile is None else in_tiles(first, self.tile, self.tile // 4)

    def denoise_both(self) -> Callable[[Tensor, float], tuple[Tensor, Tensor]]:
        """As Denoiser.denoise_both."""
        first = self.first.denoise_both()
        if self.second is not None:
            first = handed_over(first, self.second.denoise_both(), self.first.sigmas, self.share)
        return first if self.tile is None else in_tiles(first, self.tile, self.tile // 4)
