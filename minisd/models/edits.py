"""Changes to single passes of the UNet that guidance rules ask for. Arguments of a call, never state of the
network."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Edit:
    """What to do differently in one SpatialTransformer.

    identity: self-attention looks at nothing but its own token (PAG, Ahn et al. 2024, arXiv:2403.17377).
    skip: the transformer is passed over (skip-layer guidance). observe: told q, k [b n c] and the number of
    heads of each self-attention (SAG, Hong et al. 2023, arXiv:2210.00939).
    """

    identity: bool = False
    skip: bool = False
    observe: Callable[[Tensor, Tensor, int], None] | None = None


NO_EDIT = Edit()


@dataclass(frozen=True)
class FreeU:
    """Stronger backbone, weaker low frequencies of the skips, in the two coarsest stages of the decoder (Si
    et al. 2023, arXiv:2309.11497). 1 everywhere changes nothing."""

    b1: float = 1.0
    b2: float = 1.0
    s1: float = 1.0
    s2: float = 1.0

    def apply(self, h: Tensor, skip: Tensor, stage: int) -> tuple[Tensor, Tensor]:
        """(h, skip) before they are concatenated, b c h w; stage 0 is the coarsest."""
        if stage > 1:
            return h, skip
        backbone, low = ((self.b1, self.s1), (self.b2, self.s2))[stage]
        if backbone != 1.0:
            half = h.shape[1] // 2
            h = torch.cat([h[:, :half] * backbone, h[:, half:]], dim=1)
        return h, scaled_low_frequencies(skip, low) if low != 1.0 else skip


def scaled_low_frequencies(x: Tensor, scale: float, radius: int = 1) -> Tensor:
    """x [b c h w] with the frequencies within `radius` of zero scaled."""
    exact = (
        x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
    )  # fft has no half precision on the CPU
    spectrum = torch.fft.fftshift(torch.fft.fftn(exact, dim=(-2, -1)), dim=(-2, -1))
    row, column = x.shape[-2] // 2, x.shape[-1] // 2
    mask = torch.ones(x.shape[-2:], dtype=exact.dtype, device=x.device)
    mask[row - radius : row + radius, column - radius : column + radius] = scale
    back = torch.fft.ifftn(torch.fft.ifftshift(spectrum * mask, dim=(-2, -1)), dim=(-2, -1))
    return back.real.to(x.dtype)
