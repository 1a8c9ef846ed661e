"""Stochastic solvers: each step goes below sigma_next and adds fresh noise to come back up to it.

`noise(sigma, sigma_next)` gives unit normal numbers shaped like x. At eta 0 each equals its deterministic
sibling.
"""

from __future__ import annotations

from torch import Tensor

from minisd.samplers.step import (
    Denoise,
    Noise,
    OnStep,
    add_noise,
    ancestral,
    between,
    euler_to,
    slope,
    steps_of,
    tell,
)


def sample_euler_ancestral(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    *,
    noise: Noise | None = None,
    on_step: OnStep | None = None,
    eta: float = 1.0,
    s_noise: float = 1.0,
) -> Tensor:
    """Ancestral sampling with Euler steps, order 1, one call per step (k-diffusion's name for DDPM in sigma).

    eta scales the added noise (0: Euler), s_noise its standard deviation.
    """
    for i, sigma, sigma_next in steps_of(sigmas):
        denoised = denoise(x, sigma)
        down, up = ancestral(sigma, sigma_next, eta)
        x = euler_to(x, denoised, sigma, down)
        x = add_noise(x, noise, sigma, sigma_next, s_noise * up)
        tell(on_step, i, sigma, sigma_next, x, denoised)
    return x


def sample_ddim(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    *,
    noise: Noise | None = None,
    on_step: OnStep | None = None,
    eta: float = 0.0,
) -> Tensor:
    """DDIM (Song et al. 2021, arXiv:2010.02502, eq. 12 and 16), order 1, one call per step; eta 0 is
    deterministic.

    Written in x = z + sigma n. With a = 1 / (1 + sigma^2) the paper's added variance (its eq. 16, in units of
    the scaled latent) is eta^2 (1 - a_next) / (1 - a) (1 - a / a_next), which in sigma reads eta^2
    sigma_next^2 (1 - sigma_next^2 / sigma^2) times a_next: the same noise as the ancestral step above.
    """
    return sample_euler_ancestral(denoise, x, sigmas, noise=noise, on_step=on_step, eta=eta)


def sample_ddpm(
    denoise: Denoise, x: Tensor, sigmas: Tensor, *, noise: Noise | None = None, on_step: OnStep | None = None
) -> Tensor:
    """Ancestral sampling of Ho et al. 2020 (arXiv:2006.11239, algorithm 2) with the posterior ("small")
    variance: order 1, one call per step. The ancestral Euler step at eta 1 is its exact form on any noise
    levels."""
    return sample_euler_ancestral(denoise, x, sigmas, noise=noise, on_step=on_step, eta=1.0)


def sample_dpm_2_ancestral(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    *,
    noise: Noise | None = None,
    on_step: OnStep | None = None,
    eta: float = 1.0,
    s_noise: float = 1.0,
) -> Tensor:
    """Midpoint steps (in log sigma) to sigma_down, then fresh noise: order 2, two calls per step except into
    sigma 0."""
    for i, sigma, sigma_next in steps_of(sigmas):
        denoised = denoise(x, sigma)
        down, up = ancestral(sigma, sigma_next, eta)
        if down == 0:
            x = denoised
        else:
            middle = between(sigma, down, 0.5)
            halfway = euler_to(x, denoised, sigma, middle)
            x = x + (down - sigma) * slope(halfway, denoise(halfway, middle), middle)
        x = add_noise(x, noise, sigma, sigma_next, s_noise * up)
        tell(on_step, i, sigma, sigma_next, x, denoised)
    return x


def sample_dpmpp_2s_ancestral(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    *,
    noise: Noise | None = None,
    on_step: OnStep | None = None,
    eta: float = 1.0,
    s_noise: float = 1.0,
) -> Tensor:
    """DPM-Solver++(2S) to sigma_down, then fresh noise: order 2, two calls per step except into sigma 0 (Lu
    et al. 2022, arXiv:2211.01095, algorithm 1 with r = 1/2)."""
    for i, sigma, sigma_next in steps_of(sigmas):
        denoised = denoise(x, sigma)
        down, up = ancestral(sigma, sigma_next, eta)
        if down == 0:
            x = denoised
        else:
            middle = between(sigma, down, 0.5)
            halfway = euler_to(x, denoised, sigma, middle)
            x = euler_to(x, denoise(halfway, middle), sigma, down)
        x = add_noise(x, noise, sigma, sigma_next, s_noise * up)
        tell(on_step, i, sigma, sigma_next, x, denoised)
    return x
