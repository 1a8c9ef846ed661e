"""Guidance: how several predictions become one. Pure rules on tensors; `denoiser.py` makes the predictions.

CFG        uncond + scale (cond - uncond)                        Ho and Salimans 2022, arXiv:2207.12598
rescale    its standard deviation back towards cond's            Lin et al. 2023, arXiv:2305.08891, eq. 15-16
interval   only while sigma lies within a part of the run        Kynkäänniemi et al. 2024, arXiv:2404.07724
APG        the update without what is parallel to cond           Sadat et al. 2024, arXiv:2410.02416
mimic      dynamic thresholding to the range of a lower scale    after Saharia et al. 2022, arXiv:2205.11487
PAG, SAG, SLG: cond - (a prediction made worse), see `denoiser.py`

Each field has a neutral value at which nothing of the rule is computed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Guidance:
    """Every rule of one run; the defaults are neutral.

    start, end: part of the steps (0 .. 1) in which guidance acts; outside, the conditional prediction is
    taken alone. apg_eta: share of the parallel part that stays (1 neutral), apg_norm: largest norm of the
    update (0 off), apg_momentum: weight of earlier updates (0 off; usually negative). mimic_scale: scale
    whose range is kept (0 off), mimic_percentile: share of values held to it. pag_scale, sag_scale,
    slg_scale: weight of the difference to the worse prediction (0 off); places: blocks of the UNet.
    """

    scale: float = 1.0
    rescale: float = 0.0
    start: float = 0.0
    end: float = 1.0
    apg_eta: float = 1.0
    apg_norm: float = 0.0
    apg_momentum: float = 0.0
    mimic_scale: float = 0.0
    mimic_percentile: float = 1.0
    pag_scale: float = 0.0
    pag_places: tuple[str, ...] = ("middle_block",)
    sag_scale: float = 0.0
    sag_blur: float = 1.0
    slg_scale: float = 0.0
    slg_places: tuple[str, ...] = ("middle_block",)
    slg_start: float = 0.0
    slg_end: float = 1.0

    @property
    def projected(self) -> bool:
        """Whether APG acts."""
        return self.apg_eta != 1.0 or self.apg_norm > 0.0 or self.apg_momentum != 0.0

    @property
    def compares(self) -> bool:
        """Whether a rule looks at the conditional or the unconditional picture once they are combined."""
        return max(self.mimic_scale, self.pag_scale, self.sag_scale, self.slg_scale) > 0.0

    @property
    def needs_uncond(self) -> bool:
        return self.scale != 1.0 or self.sag_scale > 0.0


def axes(x: Tensor) -> tuple[int, ...]:
    """All but the first: rules act on each image by itself."""
    return tuple(range(1, x.ndim))


def cfg(cond: Tensor, uncond: Tensor, scale: float) -> Tensor:
    """Classifier-free guidance, b c h w."""
    return uncond + scale * (cond - uncond)


def weighted(conds: Sequence[Tensor], weights: Sequence[float], uncond: Tensor, scale: float) -> Tensor:
    """Several prompts at once, each pulling with its weight (Liu et al. 2022, arXiv:2206.01714, composable
    diffusion)."""
    out = uncond
    for cond, weight in zip(conds, weights, strict=True):
        out = out + (scale * weight) * (cond - uncond)
    return out


def instruct(both: Tensor, picture: Tensor, neither: Tensor, scale: float, image_scale: float) -> Tensor:
    """Two scales of instruct-pix2pix (Brooks et al. 2022, arXiv:2211.09800, eq. 3): predictions given text
    and picture, the picture alone, and neither."""
    return neither + image_scale * (picture - neither) + scale * (both - picture)


def rescaled(guided: Tensor, cond: Tensor, share: float) -> Tensor:
    """guided with its standard deviation brought `share` of the way to cond's."""
    ratio = cond.std(dim=axes(cond), keepdim=True) / guided.std(dim=axes(guided), keepdim=True)
    return guided * (share * ratio + (1 - share))


def projected(
    cond: Tensor, uncond: Tensor, rule: Guidance, average: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """APG on denoised pictures (algorithm 1 of the paper): (guided, running average of the updates)."""
    update = cond - uncond
    if rule.apg_momentum != 0.0:
        update = update if average is None else update + rule.apg_momentum * average
        average = update
    if rule.apg_norm > 0.0:
        norm = update.norm(p=2, dim=axes(update), keepdim=True)
        update = update * torch.clamp(rule.apg_norm / norm, max=1.0)
    direction = cond / cond.norm(p=2, dim=axes(cond), keepdim=True)
    parallel = (update * direction).sum(dim=axes(update), keepdim=True) * direction
    update = update - parallel + rule.apg_eta * parallel
    return cond + (rule.scale - 1) * update, average


def thresholded(cond: Tensor, uncond: Tensor, guided: Tensor, rule: Guidance) -> Tensor:
    """guided (a denoised picture) held, channel by channel about its mean, to the range that guidance at
    mimic_scale has."""
    mimic = cfg(cond, uncond, rule.mimic_scale)
    mean = guided.mean(dim=(2, 3), keepdim=True)
    centred = guided - mean
    wanted = (mimic - mimic.mean(dim=(2, 3), keepdim=True)).abs().amax(dim=(2, 3), keepdim=True)
    flat = centred.abs().flatten(2)
    limit = torch.quantile(flat.float(), rule.mimic_percentile, dim=2).to(flat)[..., None, None]
    limit = torch.maximum(limit, wanted)
    return centred.clamp(-limit, limit) * (wanted / limit) + mean


def active(sigma: float, sigmas: Sequence[float], start: float, end: float) -> bool:
    """Whether the step at this level lies in the part start .. end of a run over `sigmas` (n + 1 levels,
    falling).

    Levels between two steps, which solvers of higher order visit, belong to the step they lie in.
    """
    if start <= 0.0 and end >= 1.0:
        return True
    steps = len(sigmas) - 1
    return start * steps <= step_at(sigma, sigmas) < end * steps


def step_at(sigma: float, sigmas: Sequence[float]) -> int:
    """The step, counted from 0, in which a run over `sigmas` (n + 1 levels, falling) asks about this level:
    the last one that begins there or above."""
    return max((i for i in range(len(sigmas) - 1) if sigmas[i] >= sigma), default=0)
