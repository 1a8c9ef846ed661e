"""CFG++: the guided picture is aimed at, but the noise that is put back is that of the unguided prediction.

Paper: Chung et al. 2024 (arXiv:2406.08070), algorithm 2. It keeps samples on the manifold at guidance scales
between 0 and 1 of its own (about a tenth of the usual ones). These solvers need both predictions: `denoise(x,
sigma)` returns (guided, unconditional).
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from minisd.samplers.step import Noise, OnStep, add_noise, ancestral, euler_to, steps_of, tell

DenoiseBoth = Callable[[Tensor, float], tuple[Tensor, Tensor]]


def sample_euler_cfgpp(
    denoise: DenoiseBoth,
    x: Tensor,
    sigmas: Tensor,
    *,
    noise: Noise | None = None,
    on_step: OnStep | None = None,
) -> Tensor:
    """x_next = guided + sigma_next * eps_uncond: order 1, one (guided) call per step. Written as Euler's step
    and the difference of the two, so that at scale 0, where there is none, it has Euler's bits."""
    for i, sigma, sigma_next in steps_of(sigmas):
        guided, unconditional = denoise(x, sigma)
        x = euler_to(x, unconditional, sigma, sigma_next) + (guided - unconditional)
        tell(on_step, i, sigma, sigma_next, x, guided)
    return x


def sample_ddim_cfgpp(
    denoise: DenoiseBoth,
    x: Tensor,
    sigmas: Tensor,
    *,
    noise: Noise | None = None,
    on_step: OnStep | None = None,
    eta: float = 0.0,
) -> Tensor:
    """The same to sigma_down, then fresh noise as DDIM's eta says: order 1, one (guided) call per step."""
    for i, sigma, sigma_next in steps_of(sigmas):
        guided, unconditional = denoise(x, sigma)
        down, up = ancestral(sigma, sigma_next, eta)
        x = euler_to(x, unconditional, sigma, down) + (guided - unconditional)
        x = add_noise(x, noise, sigma, sigma_next, up)
        tell(on_step, i, sigma, sigma_next, x, guided)
    return x
