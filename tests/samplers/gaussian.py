"""Gaussian data: the one diffusion problem whose denoiser and whose solution are both known in closed form.

Data x0 ~ N(MEAN, STD^2), noised to N(MEAN, STD^2 + sigma^2). The ideal denoiser follows from Bayes' rule, and
along the probability-flow ODE x - MEAN grows as sqrt(STD^2 + sigma^2).
"""

from __future__ import annotations

import torch
from torch import Tensor

from minisd.samplers.schedule import karras_sigmas

MEAN, STD = 0.3, 0.5
SIGMA_MIN, SIGMA_MAX = 0.0292, 14.6146  # about those of Stable Diffusion


def denoise(x: Tensor, sigma: float) -> Tensor:
    """E[x0 | x], same shape as x."""
    return (STD**2 * x + sigma**2 * MEAN) / (STD**2 + sigma**2)


def solution(x: Tensor, sigma: float, sigma_end: float) -> Tensor:
    """Where the ODE takes x from sigma to sigma_end."""
    return MEAN + (x - MEAN) * ((STD**2 + sigma_end**2) / (STD**2 + sigma**2)) ** 0.5


def starts() -> Tensor:
    """Nine beginnings within two standard deviations, float64 [9, 1, 1, 1]."""
    return torch.linspace(-2, 2, 9, dtype=torch.float64).reshape(9, 1, 1, 1) * SIGMA_MAX


def open_karras(n: int) -> Tensor:
    """n steps from SIGMA_MAX to SIGMA_MIN, without the final 0."""
    return karras_sigmas(n + 1, SIGMA_MIN, SIGMA_MAX)[:-1]
