"""Stochastic solvers: each step goes below sigma_next and adds fresh noise to come back up to it.

`noise(sigma, sigma_next)` gives unit normal numbers shaped like x. At eta 0 each equals its deterministic sibling.
"""

from __future__ import annotations

import math

from torch import Tensor

from minisd.samplers.ode import Denoise, Noise, OnStep, euler_to, steps_of, tell


def ancestral(sigma: float, sigma_next: float, eta: float = 1.0) -> tuple[float, float]:
    """(sigma_down, sigma_up) with sigma_down^2 + sigma_up^2 = sigma_next^2; eta 1 is the full DDPM variance."""
    if sigma_next == 0:
        return 0.0, 0.0
    up = min(sigma_next, eta * math.sqrt(sigma_next**2 * (sigma**2 - sigma_next**2) / sigma**2))
    return math.sqrt(max(sigma_next**2 - up**2, 0.0)), up


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
        if up > 0:
            assert noise is not None, "this sampler draws noise"
            x = x + noise(sigma, sigma_next) * (s_noise * up)
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
    """DDIM (Song et al. 2021, arXiv:2010.02502, eq. 12 and 16), order 1, one call per step; eta 0 is deterministic.

    Written in x = z + sigma n. With a = 1 / (1 + sigma^2) the paper's added variance (its eq. 16, in units of the scaled
    latent) is eta^2 (1 - a_next) / (1 - a) (1 - a / a_next), which in sigma reads eta^2 sigma_next^2 (1 - sigma_next^2 / sigma^2)
    times a_next: the same noise as the ancestral step above.
    """
    return sample_euler_ancestral(denoise, x, sigmas, noise=noise, on_step=on_step, eta=eta)
