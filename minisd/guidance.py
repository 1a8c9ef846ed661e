"""From the network to `denoise(x, sigma)`, the one function a solver sees.

Classifier-free guidance (Ho and Salimans 2022, arXiv:2207.12598): uncond + scale * (cond - uncond), in
denoised pictures. With scale 1 the unconditional half is not computed. `rescale` brings the standard
deviation of the guided picture back towards that of the conditional one (Lin et al. 2023, arXiv:2305.08891,
eq. 15-16); they do it on the network's output, and so do we.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from minisd.samplers.ode import Denoise
from minisd.samplers.scaling import Prediction, c_in, denoised_from
from minisd.samplers.schedule import SigmaTable
from minisd.text.conditioning import Conditioning

Network = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]  # x, timesteps [1], context, y -> output


@dataclass(frozen=True)
class Guidance:
    """How the conditional and the unconditional picture are put together."""

    scale: float = 1.0
    rescale: float = 0.0

    def combine(self, cond: Tensor, uncond: Tensor) -> Tensor:
        """Guided network output, b c h w."""
        guided = uncond + self.scale * (cond - uncond)
        if self.rescale == 0.0:
            return guided
        axes = tuple(range(1, cond.ndim))
        ratio = cond.std(dim=axes, keepdim=True) / guided.std(dim=axes, keepdim=True)
        return guided * (self.rescale * ratio + (1 - self.rescale))


@dataclass(frozen=True)
class Batching:
    """What runs together. On a CPU nothing: one image and one prompt at a time is as fast, needs less memory,
    and makes the bits of an image independent of the batch it stands in."""

    images: bool
    prompts: bool


def make_denoise(
    network: Network,
    table: SigmaTable,
    prediction: Prediction,
    cond: Conditioning,
    uncond: Conditioning,
    guidance: Guidance,
    batching: Batching,
    dtype: torch.dtype,
    *,
    concat: Tensor | None = None,
    check: Callable[[], None] | None = None,
) -> Denoise:
    """`denoise(x, sigma)`: x [b c h w] float32 -> denoised, same shape and dtype.

    dtype: what the network computes in; everything outside it stays in x's dtype. concat [b k h w]: further
    input channels (inpainting mask and picture, depth). check: called before each network call; it may raise
    (cancelling).
    """

    def outputs(x: Tensor, sigma: float, extra: Tensor | None) -> Tensor:
        """The guided output for the images x, all in one call or one after the other."""
        timesteps = torch.tensor([table.timestep(sigma)], dtype=torch.float32, device=x.device)
        scaled = (x * c_in(sigma)).to(dtype)
        if extra is not None:
            scaled = torch.cat([scaled, extra.to(dtype)], dim=1)

        def call(parts: list[Conditioning]) -> Tensor:
            if check is not None:
                check()
            b, k = scaled.shape[0], len(parts)
            context = torch.cat([p.context.expand(b, -1, -1) for p in parts])
            ys = [p.y for p in parts if p.y is not None]
            y = torch.cat([v.expand(b, -1) for v in ys]) if ys else None
            return network(scaled.repeat(k, 1, 1, 1), timesteps, context, y).to(x.dtype)

        if guidance.scale == 1.0:
            return call([cond])
        if batching.prompts:
            both = call([cond, uncond]).chunk(2)
            return guidance.combine(*both)
        return guidance.combine(call([cond]), call([uncond]))

    def denoise(x: Tensor, sigma: float) -> Tensor:
        if batching.images:
            output = outputs(x, sigma, concat)
        else:
            rows = [concat[i : i + 1] if concat is not None else None for i in range(len(x))]
            output = torch.cat([outputs(x[i : i + 1], sigma, row) for i, row in enumerate(rows)])
        return denoised_from(output, x, sigma, prediction)

    return denoise
