"""Stochastic DPM-Solver++: exponential integrators of the reverse SDE in log sigma.

Papers: Lu et al. 2022 (arXiv:2211.01095), section 5 and appendix on SDE solvers; the step sizes with eta and
the three-step form are k-diffusion's. With h = log(sigma / sigma_next) and k = h (1 + eta), the linear part
of the SDE is solved exactly:

    x_next = exp(-k) x + (1 - exp(-k)) D + sigma_next sqrt(1 - exp(-2 eta h)) n     D: denoised, n: noise

`eta` 0 gives the ODE, 1 the SDE that ancestral sampling follows. Noise over overlapping intervals must agree:
give a Brownian noise (noise.py) where a solver asks for halves of a step.
"""

from __future__ import annotations

import math

from torch import Tensor

from minisd.samplers.step import (
    Denoise,
    Noise,
    OnStep,
    add_noise,
    ancestral,
    between,
    euler_to,
    steps_of,
    tell,
)


def phi_2(k: float) -> float:
    """(exp(-k) - 1) / k + 1: the weight of a linear change of D over a step, about k/2."""
    return math.expm1(-k) / k + 1 if k > 1e-5 else k / 2 - k * k / 6


def phi_3(k: float) -> float:
    """phi_2(k) / k - 1/2: the weight of a quadratic change, about -k/6."""
    return phi_2(k) / k - 0.5 if k > 1e-3 else -k / 6 + k * k / 24


def sde_std(sigma_next: float, h: float, eta: float) -> float:
    """Standard deviation of the noise that a step adds."""
    return sigma_next * math.sqrt(-math.expm1(-2 * eta * h))


def sample_dpmpp_sde(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    *,
    noise: Noise | None = None,
    on_step: OnStep | None = None,
    eta: float = 1.0,
    s_noise: float = 1.0,
    r: float = 0.5,
) -> Tensor:
    """DPM-Solver++ (2S) with noise at the midpoint and at the end: order 2, two calls per step except into
    sigma 0."""
    for i, sigma, sigma_next in steps_of(sigmas):
        denoised = denoise(x, sigma)
        if sigma_next == 0:
            x = denoised
        else:
            middle = between(sigma, sigma_next, r)
            down, up = ancestral(sigma, middle, eta)
            halfway = euler_to(x, denoised, sigma, down)
            halfway = add_noise(halfway, noise, sigma, middle, s_noise * up)
            share = 1 / (2 * r)
            target = (1 - share) * denoised + share * denoise(halfway, middle)
            down, up = ancestral(sigma, sigma_next, eta)
            x = add_noise(euler_to(x, target, sigma, down), noise, sigma, sigma_next, s_noise * up)
        tell(on_step, i, sigma, sigma_next, x, denoised)
    return x


def sample_dpmpp_2m_sde(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    *,
    noise: Noise | None = None,
    on_step: OnStep | None = None,
    eta: float = 1.0,
    s_noise: float = 1.0,
) -> Tensor:
    """Two-step SDE-DPM-Solver++, midpoint form: order 2, one call per step."""
    return two_step(denoise, x, sigmas, noise, on_step, eta, s_noise, heun=False)


def sample_dpmpp_2m_sde_heun(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    *,
    noise: Noise | None = None,
    on_step: OnStep | None = None,
    eta: float = 1.0,
    s_noise: float = 1.0,
) -> Tensor:
    """Two-step SDE-DPM-Solver++, Heun form: order 2, one call per step."""
    return two_step(denoise, x, sigmas, noise, on_step, eta, s_noise, heun=True)


def two_step(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    noise: Noise | None,
    on_step: OnStep | None,
    eta: float,
    s_noise: float,
    *,
    heun: bool,
) -> Tensor:
    """D changes linearly over the step, at the rate seen over the last one. The forms differ in its weight:
    (1 - exp(-k)) / 2 (midpoint) or phi_2(k) (Heun); both are k / 2 to first order. Written in the order of
    operations of dpmpp_2m and res_multistep, whose bits they are at eta 0."""
    previous: Tensor | None = None
    h_last = 0.0
    for i, sigma, sigma_next in steps_of(sigmas):
        denoised = denoise(x, sigma)
        if sigma_next == 0:
            x = denoised
        else:
            h = math.log(sigma / sigma_next)
            keep = (sigma_next / sigma) ** (1 + eta)  # exp(-k)
            target = denoised
            if previous is not None and not heun:
                r = h_last / h
                target = (1 + 1 / (2 * r)) * denoised - 1 / (2 * r) * previous
            x = keep * x + (1 - keep) * target
            if previous is not None and heun:
                x = x + phi_2(h * (1 + eta)) * (h / h_last) * (denoised - previous)
            x = add_noise(x, noise, sigma, sigma_next, s_noise * sde_std(sigma_next, h, eta))
            h_last = h
        previous = denoised
        tell(on_step, i, sigma, sigma_next, x, denoised)
    return x


def sample_dpmpp_3m_sde(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    *,
    noise: Noise | None = None,
    on_step: OnStep | None = None,
    eta: float = 1.0,
    s_noise: float = 1.0,
) -> Tensor:
    """Three-step SDE-DPM-Solver++ as the community ships it, one call per step. The weight of the second
    difference lacks a factor 2, which makes it of order 2 in spite of its name; `dpmpp_3m_sde_exact` has
    it."""
    return three_step(denoise, x, sigmas, noise, on_step, eta, s_noise, second=1.0)


def sample_dpmpp_3m_sde_exact(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    *,
    noise: Noise | None = None,
    on_step: OnStep | None = None,
    eta: float = 1.0,
    s_noise: float = 1.0,
) -> Tensor:
    """Three-step SDE-DPM-Solver++ with the right weight of the second difference: order 3 at eta 0, one call
    per step."""
    return three_step(denoise, x, sigmas, noise, on_step, eta, s_noise, second=2.0)


def three_step(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    noise: Noise | None,
    on_step: OnStep | None,
    eta: float,
    s_noise: float,
    *,
    second: float,
) -> Tensor:
    """D is a parabola through its last three values; the integral of its quadratic term is `second` * phi_3
    per unit."""
    pasts: list[tuple[Tensor, float]] = []  # (denoised, h of the step it began), newest first
    for i, sigma, sigma_next in steps_of(sigmas):
        denoised = denoise(x, sigma)
        if sigma_next == 0:
            x = denoised
        else:
            h = math.log(sigma / sigma_next)
            k = h * (1 + eta)
            x = math.exp(-k) * x - math.expm1(-k) * denoised
            if len(pasts) == 2:
                (d1, h1), (d2, h2) = pasts
                r0, r1 = h1 / h, h2 / h
                first, earlier = (denoised - d1) / r0, (d1 - d2) / r1
                change = first + (first - earlier) * (r0 / (r0 + r1))
                bend = (first - earlier) / (r0 + r1)
                x = x + phi_2(k) * change - second * phi_3(k) * bend
            elif pasts:
                d1, h1 = pasts[0]
                x = x + phi_2(k) * (h / h1) * (denoised - d1)
            x = add_noise(x, noise, sigma, sigma_next, s_noise * sde_std(sigma_next, h, eta))
            pasts = [(denoised, h), *pasts[:1]]
        tell(on_step, i, sigma, sigma_next, x, denoised)
    return x
