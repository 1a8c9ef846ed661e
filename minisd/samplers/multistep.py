"""Linear multistep solvers: one call per step, earlier calls make up for the order.

`sample_lms`, `sample_deis`: the slope eps is a polynomial through its last values, in sigma (LMS:
Adams-Bashforth on uneven levels) or in log sigma (DEIS: Zhang and Chen 2022, arXiv:2204.13902, the log-rho
form). `sample_plms`, `sample_ipndm`: the same with the coefficients of even levels (Liu et al. 2022,
arXiv:2202.09778). `sample_res_multistep`: D linear in log sigma, integrated exactly (Zhang et al. 2023,
arXiv:2308.02157).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from torch import Tensor

from minisd.samplers.sde_multistep import phi_2
from minisd.samplers.step import Denoise, Noise, OnStep, euler_to, slope, steps_of, tell

POINTS, WEIGHTS = np.polynomial.legendre.leggauss(64)
# Adams-Bashforth on even levels, newest first, by order
ADAMS_BASHFORTH = {
    1: (1.0,),
    2: (3 / 2, -1 / 2),
    3: (23 / 12, -16 / 12, 5 / 12),
    4: (55 / 24, -59 / 24, 37 / 24, -9 / 24),
}


def adams_weights(nodes: Sequence[float], low: float, high: float, rate: float = 0.0) -> list[float]:
    """int exp(rate (s - high)) L_j(s) ds over s in low .. high, L_j the polynomial that is 1 at nodes[j] and
    0 at the others.

    By quadrature on products of differences, to rounding: antiderivatives of the coefficients would cancel
    where two levels lie close together.
    """
    half = (high - low) / 2
    s = low + half * (POINTS + 1)
    weights = half * WEIGHTS * np.exp(rate * (s - high))
    out = []
    for j, node in enumerate(nodes):
        basis = np.ones(len(s))
        for i, other in enumerate(nodes):
            if i != j:
                basis = basis * (s - other) / (node - other)
        out.append(float((weights * basis).sum()))
    return out


def latest(levels: Sequence[float], i: int, count: int) -> list[float]:
    """levels[i] and those before it, newest first: at most `count`."""
    return [levels[j] for j in range(i, max(i - count, -1), -1)]


def combined(weights: Sequence[float], slopes: Sequence[Tensor]) -> Tensor:
    """sum_j weights[j] slopes[j]; slopes newest first."""
    total = weights[0] * slopes[0]
    for w, d in zip(weights[1:], slopes[1:], strict=True):
        total += w * d
    return total


def sample_lms(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    *,
    noise: Noise | None = None,
    on_step: OnStep | None = None,
    order: int = 4,
) -> Tensor:
    """Linear multistep in sigma, order 1 to 4, one call per step; the first steps are of the order that their
    past allows."""
    steps, levels = steps_of(sigmas), sigmas.tolist()
    weights = [adams_weights([s - a for s in latest(levels, i, order)], 0.0, b - a) for i, a, b in steps]
    slopes: list[Tensor] = []
    for i, sigma, sigma_next in steps:
        denoised = denoise(x, sigma)
        slopes = [slope(x, denoised, sigma), *slopes][:order]
        x = x + combined(weights[i], slopes)
        tell(on_step, i, sigma, sigma_next, x, denoised)
    return x


def sample_deis(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    *,
    noise: Noise | None = None,
    on_step: OnStep | None = None,
    order: int = 3,
) -> Tensor:
    """DEIS with eps a polynomial in log sigma, order 1 to 3, one call per step; order 1 into sigma 0."""
    steps, levels = steps_of(sigmas), sigmas.tolist()
    weights = list[list[float]]()
    for i, sigma, sigma_next in steps:
        if sigma_next > 0:
            nodes = [math.log(s / sigma) for s in latest(levels, i, order)]
            width = math.log(sigma_next / sigma)
            unit = adams_weights(nodes, 0.0, width, rate=1.0)  # of sigma_next exp(u - width) du
            weights.append([sigma_next * w for w in unit])
    slopes: list[Tensor] = []
    for i, sigma, sigma_next in steps:
        denoised = denoise(x, sigma)
        slopes = [slope(x, denoised, sigma), *slopes][:order]
        if sigma_next == 0:
            x = denoised
        else:
            x = x + combined(weights[i], slopes)
        tell(on_step, i, sigma, sigma_next, x, denoised)
    return x


def sample_ipndm(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    *,
    noise: Noise | None = None,
    on_step: OnStep | None = None,
    order: int = 4,
) -> Tensor:
    """Adams-Bashforth coefficients of even levels whatever the levels are: order 2 where neighbouring steps
    are nearly alike, as on all smooth schedules, and order 1 where they are not."""
    slopes: list[Tensor] = []
    for i, sigma, sigma_next in steps_of(sigmas):
        denoised = denoise(x, sigma)
        slopes = [slope(x, denoised, sigma), *slopes][:order]
        x = x + (sigma_next - sigma) * combined(ADAMS_BASHFORTH[len(slopes)], slopes)
        tell(on_step, i, sigma, sigma_next, x, denoised)
    return x


def sample_plms(
    denoise: Denoise, x: Tensor, sigmas: Tensor, *, noise: Noise | None = None, on_step: OnStep | None = None
) -> Tensor:
    """PLMS: as iPNDM, but the first step is repeated with the mean of the slopes at its two ends, one call
    more than steps (Liu et al. 2022, section 3.3; the sampler Stable Diffusion 1 was released with)."""
    slopes: list[Tensor] = []
    for i, sigma, sigma_next in steps_of(sigmas):
        denoised = denoise(x, sigma)
        d = slope(x, denoised, sigma)
        slopes = [d, *slopes][:4]
        if len(slopes) > 1:
            d = combined(ADAMS_BASHFORTH[len(slopes)], slopes)
        elif sigma_next > 0:
            trial = x + (sigma_next - sigma) * d
            d = (d + slope(trial, denoise(trial, sigma_next), sigma_next)) / 2
        x = x + (sigma_next - sigma) * d
        tell(on_step, i, sigma, sigma_next, x, denoised)
    return x


def sample_res_multistep(
    denoise: Denoise, x: Tensor, sigmas: Tensor, *, noise: Noise | None = None, on_step: OnStep | None = None
) -> Tensor:
    """Two-step refined exponential solver: order 2, one call per step. D is linear in log sigma through its
    last two values."""
    previous: Tensor | None = None
    h_last = 0.0
    for i, sigma, sigma_next in steps_of(sigmas):
        denoised = denoise(x, sigma)
        if sigma_next == 0:
            x = denoised
        else:
            h = math.log(sigma / sigma_next)
            x = euler_to(x, denoised, sigma, sigma_next)
            if previous is not None:
                x = x + phi_2(h) * (h / h_last) * (denoised - previous)
            h_last = h
        previous = denoised
        tell(on_step, i, sigma, sigma_next, x, denoised)
    return x
