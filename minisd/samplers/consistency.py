"""Few-step samplers for distilled models: the network jumps to the picture, noise brings it back to the next
level.

LCM: Luo et al. 2023 (arXiv:2310.04378), multistep sampling of Song et al. 2023 (arXiv:2303.01469, algorithm
1). TCD: Zheng et al. 2024 (arXiv:2402.19159, algorithm 4): the jump goes to an intermediate level, and less
noise is added.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from minisd.samplers.schedule import SigmaTable
from minisd.samplers.step import Denoise, Noise, OnStep, add_noise, euler_to, steps_of, tell


def sample_lcm(
    denoise: Denoise, x: Tensor, sigmas: Tensor, *, noise: Noise | None = None, on_step: OnStep | None = None
) -> Tensor:
    """Denoise, then noise again to the next level: one call per step. Wants an LCM model or adapter."""
    for i, sigma, sigma_next in steps_of(sigmas):
        denoised = denoise(x, sigma)
        x = add_noise(denoised, noise, sigma, sigma_next, sigma_next)
        tell(on_step, i, sigma, sigma_next, x, denoised)
    return x


def sample_tcd(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    *,
    table: SigmaTable,
    noise: Noise | None = None,
    on_step: OnStep | None = None,
    gamma: float = 0.3,
) -> Tensor:
    """Jump to the trained level at (1 - gamma) of the next timestep, then noise up to the next: one call per
    step.

    gamma 0 is the deterministic Euler step, 1 is LCM. The intermediate level is one of `table`'s, as in
    training.
    """
    steps = steps_of(sigmas)
    below = [jump_level(table, sigma_next, gamma) for _, _, sigma_next in steps]
    for i, sigma, sigma_next in steps:
        denoised = denoise(x, sigma)
        x = euler_to(x, denoised, sigma, below[i])
        x = add_noise(x, noise, sigma, sigma_next, math.sqrt(sigma_next**2 - below[i] ** 2))
        tell(on_step, i, sigma, sigma_next, x, denoised)
    return x


def jump_level(table: SigmaTable, sigma_next: float, gamma: float) -> float:
    """The trained level at (1 - gamma) of sigma_next's timestep, if it lies below sigma_next."""
    if sigma_next == 0 or gamma == 0:
        return sigma_next
    t = math.floor((1 - gamma) * table.timestep(sigma_next))
    return min(float(table.sigma(torch.tensor(float(t)))), sigma_next)
