"""Deterministic solvers of the probability-flow ODE dx/dsigma = (x - denoised) / sigma (Karras et al. 2022,
eq. 1), one step at a time.

With rising sigmas the same functions run the other way, from picture to noise (DDIM inversion).
"""

from __future__ import annotations

import math

from torch import Tensor

from minisd.samplers.step import (
    Denoise,
    Noise,
    OnStep,
    add_noise,
    between,
    euler_to,
    slope,
    steps_of,
    tell,
)

MAX_CHURN = 2**0.5 - 1  # of Karras et al. 2022, section 4


def churned(
    x: Tensor,
    sigma: float,
    steps: int,
    noise: Noise | None,
    churn: float,
    tmin: float,
    tmax: float,
    s_noise: float,
) -> tuple[Tensor, float]:
    """Noise added before a step (Karras et al. 2022, algorithm 2, lines 4-6): (x_hat, sigma_hat). churn 0
    changes nothing."""
    if churn == 0 or not tmin <= sigma <= tmax:
        return x, sigma
    sigma_hat = sigma * (1 + min(churn / steps, MAX_CHURN))
    return add_noise(x, noise, sigma, sigma_hat, s_noise * math.sqrt(sigma_hat**2 - sigma**2)), sigma_hat


def sample_euler(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    *,
    noise: Noise | None = None,
    on_step: OnStep | None = None,
    s_churn: float = 0.0,
    s_tmin: float = 0.0,
    s_tmax: float = math.inf,
    s_noise: float = 1.0,
) -> Tensor:
    """Euler's method, order 1, one call per step (Karras et al. 2022, algorithm 2 without the correction).

    The same numbers as DDIM (Song et al. 2021, arXiv:2010.02502) with eta 0. s_churn > 0 adds noise before
    each step whose level lies in s_tmin .. s_tmax.
    """
    for i, sigma, sigma_next in steps_of(sigmas):
        x, hat = churned(x, sigma, len(sigmas) - 1, noise, s_churn, s_tmin, s_tmax, s_noise)
        denoised = denoise(x, hat)
        x = euler_to(x, denoised, hat, sigma_next)
        tell(on_step, i, sigma, sigma_next, x, denoised)
    return x


def sample_heun(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    *,
    noise: Noise | None = None,
    on_step: OnStep | None = None,
    s_churn: float = 0.0,
    s_tmin: float = 0.0,
    s_tmax: float = math.inf,
    s_noise: float = 1.0,
) -> Tensor:
    """Heun's method, order 2, two calls per step except into sigma 0 (Karras et al. 2022, algorithm 2)."""
    for i, sigma, sigma_next in steps_of(sigmas):
        x, hat = churned(x, sigma, len(sigmas) - 1, noise, s_churn, s_tmin, s_tmax, s_noise)
        denoised = denoise(x, hat)
        predicted = euler_to(x, denoised, hat, sigma_next)
        if sigma_next > 0:
            mean = (
                slope(x, denoised, hat) + slope(predicted, denoise(predicted, sigma_next), sigma_next)
            ) / 2
            predicted = x + (sigma_next - hat) * mean
        x = predicted
        tell(on_step, i, sigma, sigma_next, x, denoised)
    return x


def sample_dpm_2(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    *,
    noise: Noise | None = None,
    on_step: OnStep | None = None,
    s_churn: float = 0.0,
    s_tmin: float = 0.0,
    s_tmax: float = math.inf,
    s_noise: float = 1.0,
) -> Tensor:
    """Midpoint method with the midpoint in log sigma, order 2, two calls per step except into sigma 0
    (k-diffusion's DPM-2, after Karras et al. 2022, algorithm 2 and Lu et al. 2022, arXiv:2206.00927)."""
    for i, sigma, sigma_next in steps_of(sigmas):
        x, hat = churned(x, sigma, len(sigmas) - 1, noise, s_churn, s_tmin, s_tmax, s_noise)
        denoised = denoise(x, hat)
        if sigma_next == 0:
            x = denoised
        else:
            middle = between(hat, sigma_next, 0.5)
            halfway = euler_to(x, denoised, hat, middle)
            x = x + (sigma_next - hat) * slope(halfway, denoise(halfway, middle), middle)
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
