"""Who answers a solver in one run: a network, another that takes over from it, each perhaps tile by tile."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from minisd.denoiser import Denoiser
from minisd.models.tiling import Tile, tiles_of
from minisd.refiner import Answer, handed_over
from minisd.request import Request
from minisd.samplers.schedule import SigmaTable
from minisd.tiles import in_tiles


@dataclass(frozen=True)
class Relay:
    """Two Denoisers in one run. share: steps that the first makes. tiles: of the latents, sharing `overlap`
    with their neighbours; none: they are seen whole. there: the second one's device, where it is another."""

    first: Denoiser
    second: Denoiser | None = None
    share: int = 0
    tiles: tuple[Tile, ...] = ()
    overlap: int = 0
    there: torch.device | None = None

    @property
    def table(self) -> SigmaTable:
        return self.first.table

    @property
    def dtype(self) -> torch.dtype:
        return self.first.dtype

    def at_tile(self, tile: Tile) -> Relay:
        """What is to be said of one tile."""
        second = None if self.second is None else self.second.at_tile(tile)
        return Relay(self.first.at_tile(tile), second, self.share, there=self.there)

    def denoise(self) -> Callable[[Tensor, float], Tensor]:
        """As Denoiser.denoise."""
        if self.tiles:
            return in_tiles(lambda tile: self.at_tile(tile).denoise(), self.tiles, self.overlap)
        first = self.first.denoise()
        if self.second is None:
            return first
        return handed_over(first, across(self.second.denoise(), self.there), self.first.sigmas, self.share)

    def denoise_both(self) -> Callable[[Tensor, float], tuple[Tensor, Tensor]]:
        """As Denoiser.denoise_both."""
        if self.tiles:
            return in_tiles(lambda tile: self.at_tile(tile).denoise_both(), self.tiles, self.overlap)
        first = self.first.denoise_both()
        if self.second is None:
            return first
        second = across(self.second.denoise_both(), self.there)
        return handed_over(first, second, self.first.sigmas, self.share)


def tiles_in(request: Request, size: tuple[int, int], factor: int) -> tuple[tuple[Tile, ...], int]:
    """Tiles over latents of `size`, and how many latents they share; none where nothing asks for them."""
    if request.diffusion_tile is None:
        return (), 0
    tile = request.diffusion_tile // factor
    overlap = tile // 4
    return tuple(tiles_of(*size, tile=tile, overlap=overlap, wrap=request.wrap)), overlap


def across(
    denoise: Callable[[Tensor, float], Answer], device: torch.device | None
) -> Callable[[Tensor, float], Answer]:
    """`denoise` of a network on another device, for latents that stay where they are."""
    if device is None:
        return denoise

    def call(x: Tensor, sigma: float) -> Answer:
        answer = denoise(x.to(device), sigma)
        if isinstance(answer, Tensor):
            return answer.to(x.device)
        return tuple(one.to(x.device) for one in answer)  # type: ignore[return-value]

    return call
