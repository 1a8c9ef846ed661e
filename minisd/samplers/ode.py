"""Deterministic solvers of the probability-flow ODE dx/dsigma = (x - denoised) / sigma (Karras et al. 2022, eq. 1).

Each takes `denoise(x, sigma) -> denoised`, x [b c h w] at sigmas[0], and falling `sigmas` [n + 1] (float64, on the CPU: their
values become Python floats, so no step waits for a device). They return x at sigmas[-1]. One pair of neighbouring levels is
a step; `on_step` is told after each. Nothing is drawn at random and no state outlives the call.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

Denoise = Callable[[Tensor, float], Tensor]
Noise = Callable[[float, float], Tensor]  # noise(sigma, sigma_next): unit normal, shaped like x


@dataclass(frozen=True)
class Step:
    """What a solver tells after each step: x has arrived at sigma_next; denoised was seen at sigma."""

    index: int
    sigma: float
    sigma_next: float
    x: Tensor
    denoised: Tensor


OnStep = Callable[[Step], None]


def steps_of(sigmas: Tensor) -> list[tuple[int, float, float]]:
    """(index, sigma, sigma_next) of every step."""
    values = [float(s) for s in sigmas]
    return [(i, a, b) for i, (a, b) in enumerate(zip(values, values[1:], strict=False))]


def tell(on_step: OnStep | None, index: int, sigma: float, sigma_next: float, x: Tensor, denoised: Tensor) -> None:
    if on_step is not None:
        on_step(Step(index, sigma, sigma_next, x, denoised))


def euler_to(x: Tensor, denoised: Tensor, sigma: float, sigma_next: float) -> Tensor:
    """One explicit Euler step from sigma to sigma_next, written as the interpolation it is: exact at sigma_next = 0."""
    ratio = sigma_next / sigma
    return ratio * x + (1 - ratio) * denoised


def sample_euler(
    denoise: Denoise, x: Tensor, sigmas: Tensor, *, noise: Noise | None = None, on_step: OnStep | None = None
) -> Tensor:
    """Euler's method, order 1, one call per step (Karras et al. 2022, algorithm 1 without the correction).

    The same numbers as DDIM (Song et al. 2021, arXiv:2010.02502) with eta 0.
    """
    for i, sigma, sigma_next in steps_of(sigmas):
        denoised = denoise(x, sigma)
        x = euler_to(x, denoised, sigma, sigma_next)
        tell(on_step, i, sigma, sigma_next, x, denoised)
    return x


def sample_heun(
    denoise: Denoise, x: Tensor, sigmas: Tensor, *, noise: Noise | None = None, on_step: OnStep | None = None
) -> Tensor:
    """Heun's method, order 2, two calls per step except into sigma 0 (Karras et al. 2022, algorithm 1)."""
    for i, sigma, sigma_next in steps_of(sigmas):
        denoised = denoise(x, sigma)
        predicted = euler_to(x, denoised, sigma, sigma_next)
        if sigma_next > 0:
            slope = (x - denoised) / sigma
            slope_next = (predicted - denoise(predicted, sigma_next)) / sigma_next
            predicted = x + (sigma_next - sigma) * (slope + slope_next) / 2
        x = predicted
        tell(on_step, i, sigma, sigma_next, x, denoised)
    return x


def sample_dpmpp_2m(
    denoise: Denoise, x: Tensor, sigmas: Tensor, *, noise: Noise | None = None, on_step: OnStep | None = None
) -> Tensor:
    """DPM-Solver++(2M), order 2, one call per step (Lu et al. 2022, arXiv:2211.01095, algorithm 2).

    In lambda = -log sigma; the first step and the step into sigma 0 are of order 1.
    """
    previous: Tensor | None = None
    h_last = 0.0
    for i, sigma, sigma_next in steps_of(sigmas):
        denoised = denoise(x, sigma)
        if sigma_next == 0:
            x = denoised
        else:
            h = math.log(sigma / sigma_next)
            target = denoised
            if previous is not None:
                r = h_last / h
                target = (1 + 1 / (2 * r)) * denoised - 1 / (2 * r) * previous
            x = euler_to(x, target, sigma, sigma_next)
            h_last = h
        previous = denoised
        tell(on_step, i, sigma, sigma_next, x, denoised)
    return x
