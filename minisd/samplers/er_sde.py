"""ER-SDE-Solver: extended reverse-time SDE solvers of order 1 to 3.

Paper: Cui et al. 2023 (arXiv:2309.06169), VE form: algorithms 1 to 3 and noise function "ER-SDE 5", f(s) = s
(exp(s^0.3) + 10). With r = f(sigma_next) / f(sigma):

    x_next = r x + (1 - r) D + (h + f_next I0) D' + (h^2 / 2 + f_next I1) D'' + noise   h = sigma_next - sigma
    I0 = int ds / f(s),   I1 = int (s - sigma) / f(s) ds   over sigma_next .. sigma

D' and D'' are difference quotients in sigma. The integrals are taken by Gauss-Legendre quadrature, to
rounding.
"""

from __future__ import annotations

import math

import numpy as np
from torch import Tensor

from minisd.samplers.step import Denoise, Noise, OnStep, add_noise, steps_of, tell

NODES, WEIGHTS = np.polynomial.legendre.leggauss(64)


def scaler(sigma: float) -> float:
    """f of the paper: how fast the extended SDE forgets; larger than sigma, so that noise is added."""
    return sigma * (math.exp(sigma**0.3) + 10.0)


def integrals(low: float, high: float) -> tuple[float, float]:
    """(int ds / f(s), int (s - high) / f(s) ds) over low .. high, in log s, where the integrand is smooth."""
    half = (math.log(high) - math.log(low)) / 2
    s = np.exp(math.log(low) + half * (NODES + 1))
    inverse = 1.0 / (np.exp(s**0.3) + 10.0)  # s / f(s), as ds = s d(log s)
    return float(half * (WEIGHTS * inverse).sum()), float(half * (WEIGHTS * (s - high) * inverse).sum())


def sample_er_sde(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    *,
    noise: Noise | None = None,
    on_step: OnStep | None = None,
    order: int = 3,
    s_noise: float = 1.0,
) -> Tensor:
    """ER-SDE of order 1 to 3, one call per step; the first steps are of the order that their past allows."""
    steps = steps_of(sigmas)
    inner = [(a, b) for _, a, b in steps if b > 0]
    weights = [integrals(b, a) for a, b in inner] if order >= 2 else []
    pasts: list[tuple[Tensor, float]] = []  # (denoised, sigma), newest first
    slope_last: Tensor | None = None
    for i, sigma, sigma_next in steps:
        denoised = denoise(x, sigma)
        if sigma_next == 0:
            x = denoised
        else:
            f_next = scaler(sigma_next)
            r = f_next / scaler(sigma)
            x = r * x + (1 - r) * denoised
            if order >= 2 and pasts:
                step = sigma_next - sigma
                i0, i1 = weights[i]
                d1 = (denoised - pasts[0][0]) / (sigma - pasts[0][1])
                x = x + (step + f_next * i0) * d1
                if order >= 3 and slope_last is not None:
                    d2 = (d1 - slope_last) / ((sigma - pasts[1][1]) / 2)
                    x = x + (step**2 / 2 + f_next * i1) * d2
                slope_last = d1
            std = math.sqrt(max(sigma_next**2 - (sigma * r) ** 2, 0.0))
            x = add_noise(x, noise, sigma, sigma_next, s_noise * std)
        pasts = [(denoised, sigma), *pasts[:1]]
        tell(on_step, i, sigma, sigma_next, x, denoised)
    return x
