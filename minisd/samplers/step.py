"""What every solver shares: the function it is given, what it tells after a step, and the two moves all are
made of.

A solver is `sample_x(denoise, x, sigmas, *, noise=None, on_step=None, ...) -> x`. `denoise(x, sigma)` is the
ideal picture as the model sees it, x [b c h w] begins at sigmas[0] and is returned at sigmas[-1]. `sigmas` [n
+ 1] is float64 on the CPU and its values become Python floats, so that no step waits for a device. One pair
of neighbouring levels is a step.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

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
    """(index, sigma, sigma_next) of every step, as Python numbers."""
    values = sigmas.tolist()
    return [(i, a, b) for i, (a, b) in enumerate(zip(values, values[1:], strict=False))]


def tell(
    on_step: OnStep | None, index: int, sigma: float, sigma_next: float, x: Tensor, denoised: Tensor
) -> None:
    if on_step is not None:
        on_step(Step(index, sigma, sigma_next, x, denoised))


def shifted(on_step: OnStep | None, by: int) -> OnStep | None:
    """The report of a part of a run that `by` steps precede, with its place in the whole."""
    return None if on_step is None else lambda step: on_step(replace(step, index=step.index + by))


def euler_to(x: Tensor, denoised: Tensor, sigma: float, sigma_next: float) -> Tensor:
    """One explicit Euler step from sigma to sigma_next, written as the interpolation it is: exact at
    sigma_next = 0."""
    ratio = sigma_next / sigma
    return ratio * x + (1 - ratio) * denoised


def slope(x: Tensor, denoised: Tensor, sigma: float) -> Tensor:
    """dx/dsigma of the probability-flow ODE, which is the predicted noise eps (Karras et al. 2022, eq. 1)."""
    return (x - denoised) / sigma


def ancestral(sigma: float, sigma_next: float, eta: float = 1.0) -> tuple[float, float]:
    """(sigma_down, sigma_up) with sigma_down^2 + sigma_up^2 = sigma_next^2; eta 1 is the full DDPM
    variance."""
    if sigma_next == 0 or eta == 0:
        return sigma_next, 0.0
    up = min(sigma_next, eta * math.sqrt(sigma_next**2 * (sigma**2 - sigma_next**2) / sigma**2))
    return math.sqrt(max(sigma_next**2 - up**2, 0.0)), up


def add_noise(x: Tensor, noise: Noise | None, sigma: float, sigma_next: float, std: float) -> Tensor:
    """x plus fresh noise of this standard deviation; x itself where it is 0, so that eta 0 draws nothing."""
    if std == 0:
        return x
    assert noise is not None, "this solver draws noise"
    return x + noise(sigma, sigma_next) * std


def between(sigma: float, sigma_next: float, share: float) -> float:
    """The level `share` of the way from sigma to sigma_next, evenly in log sigma."""
    return sigma * (sigma_next / sigma) ** share  # exact at share 0: the first level of a run stays itself
