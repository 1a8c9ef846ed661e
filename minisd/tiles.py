"""Tiled diffusion: at every step the network sees overlapping tiles of a large picture, and what it says of
them is averaged (MultiDiffusion, Bar-Tal et al. 2023, arXiv:2302.08113), with weights that fall towards a
tile's border. One tile that covers everything is the plain run, bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar, cast

import torch
from torch import Tensor

from minisd.errors import RequestError
from minisd.models.tiling import tiled
from minisd.request import Request

Answer = TypeVar("Answer", Tensor, tuple[Tensor, Tensor])


def in_tiles(
    denoise: Callable[[Tensor, float], Answer], tile: int, overlap: int
) -> Callable[[Tensor, float], Answer]:
    """denoise over tiles of x [b c h w], in latents; both answers, where it gives two."""

    def call(x: Tensor, sigma: float) -> Answer:
        if tile >= x.shape[-2] and tile >= x.shape[-1]:
            return denoise(x, sigma)
        two: list[bool] = []

        def seen(part: Tensor) -> Tensor:
            answer = denoise(part, sigma)
            two.append(isinstance(answer, tuple))
            return answer if isinstance(answer, Tensor) else torch.cat(answer, dim=1)

        out = tiled(seen, x, tile=tile, overlap=overlap)
        return cast(Answer, tuple(out.chunk(2, dim=1)) if two[0] else out)

    return call


def check_tiles(request: Request, channels: bool) -> None:
    """Raises RequestError for what sees the whole picture at its place. channels: the network has input
    channels for one."""
    wrong = {
        "controls": bool(request.controls),
        "apg_momentum": request.apg_momentum != 0.0,
        "image": channels,
    }
    for name, given in wrong.items():
        if given:
            raise RequestError(
                f"diffusion_tile shows the network one part at a time, and {name} belongs to the whole; "
                "leave one of them out",
                field="diffusion_tile",
            )
