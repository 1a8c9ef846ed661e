"""Restart: Heun's method that goes back up in noise within an interval and down again, which contracts
accumulated errors.

Paper: Xu et al. 2023 (arXiv:2306.14878), algorithm 1. Each restart adds noise from the interval's lower level
to its upper one and repeats the interval on levels of its own.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from minisd.samplers.ode import sample_heun
from minisd.samplers.schedule import karras_sigmas
from minisd.samplers.step import Denoise, Noise, OnStep, add_noise, shifted, steps_of


@dataclass(frozen=True)
class Restart:
    """Restarts when the level nearest `low` is reached: `times` times back to the level nearest `high`, in
    `steps` steps."""

    low: float
    high: float
    steps: int
    times: int


def community_plan(steps: int) -> tuple[int, tuple[Restart, ...]]:
    """(steps of the main pass, restarts) for a budget of `steps`, as the community splits it: none below 20;
    nine steps once from 20; a quarter of the steps twice from 36. Always from sigma 0.1 back to 2."""
    if steps < 20:
        return steps, ()
    own, times = (steps // 4, 2) if steps >= 36 else (9, 1)
    return steps - own * times, (Restart(0.1, 2.0, own, times),)


def sample_restart(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    *,
    noise: Noise | None = None,
    on_step: OnStep | None = None,
    restarts: tuple[Restart, ...] | None = None,
    s_noise: float = 1.0,
) -> Tensor:
    """Heun along `sigmas` with restarts: order 2, two calls per step except into sigma 0.

    restarts None: `community_plan` splits the steps, and the main pass takes Karras levels between the ends
    of `sigmas`, 0 included where they end there.
    """
    if restarts is None:
        main, restarts = community_plan(len(sigmas) - 1)
        if restarts:
            positive = sigmas[sigmas > 0]
            to_zero = float(sigmas[-1]) == 0
            whole = karras_sigmas(main if to_zero else main + 1, float(positive[-1]), float(sigmas[0]))
            sigmas = whole if to_zero else whole[:-1]
    levels = [float(s) for s in sigmas]
    for index, _, sigma_next in steps_of(sigmas):
        x = sample_heun(denoise, x, sigmas[index : index + 2], noise=noise, on_step=shifted(on_step, index))
        for restart in restarts:
            if sigma_next == 0 or nearest(levels, restart.low) != index + 1:
                continue
            high = levels[nearest(levels, restart.high)]
            if high <= sigma_next:
                continue
            inner = karras_sigmas(restart.steps, sigma_next, high)[:-1]  # from high to low, both included
            for _ in range(restart.times):
                std = s_noise * math.sqrt(high**2 - sigma_next**2)
                x = add_noise(x, noise, sigma_next, high, std)
                x = sample_heun(denoise, x, inner, noise=noise)
    return x


def nearest(levels: list[float], sigma: float) -> int:
    return int(torch.tensor([abs(s - sigma) for s in levels]).argmin())
