"""DPM-Solver in single steps of order 1, 2 and 3: a fixed plan of them (fast) and an adaptive one.

Paper: Lu et al. 2022 (arXiv:2206.00927): eq. 3.7 and algorithms 1, 2 for the steps, appendix C for the
adaptive ones. In our variables the integral of eps over a step of constant eps is (sigma_next - sigma) eps,
so order 1 is Euler's method.

These choose their own levels between the first and the last positive sigma given. Into a final 0 both take
one more call, so that what comes out lies at sigmas[-1] like that of every other solver.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from minisd.samplers.step import Denoise, Noise, OnStep, add_noise, ancestral, between, slope, tell


def step_2(
    denoise: Denoise, x: Tensor, eps: Tensor, sigma: float, sigma_next: float, r1: float = 0.5
) -> Tensor:
    """Order 2, one call beyond the one that gave eps (algorithm 1 of the paper)."""
    level = between(sigma, sigma_next, r1)
    u = x + (level - sigma) * eps
    eps_1 = slope(u, denoise(u, level), level)
    return x + (sigma_next - sigma) * (eps + (eps_1 - eps) / (2 * r1))


def step_3(
    denoise: Denoise, x: Tensor, eps: Tensor, sigma: float, sigma_next: float
) -> tuple[Tensor, Tensor]:
    """Order 3, two calls beyond the one that gave eps (algorithm 2 with r1 = 1/3, r2 = 2/3): (x_next, eps at
    the first third)."""
    r1, r2 = 1 / 3, 2 / 3
    h = math.log(sigma / sigma_next)
    first, second = between(sigma, sigma_next, r1), between(sigma, sigma_next, r2)
    u1 = x + (first - sigma) * eps
    eps_1 = slope(u1, denoise(u1, first), first)
    bend = second * (r2 / r1) * (math.expm1(r2 * h) / (r2 * h) - 1)
    u2 = x + (second - sigma) * eps - bend * (eps_1 - eps)
    eps_2 = slope(u2, denoise(u2, second), second)
    bend = sigma_next / r2 * (math.expm1(h) / h - 1)
    return x + (sigma_next - sigma) * eps - bend * (eps_2 - eps), eps_1


def sample_dpm_fast(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    *,
    noise: Noise | None = None,
    on_step: OnStep | None = None,
    eta: float = 0.0,
    s_noise: float = 1.0,
) -> Tensor:
    """len(sigmas) - 1 calls spent on steps of order 3, the last ones of order 2 and 1 where 3 does not divide
    (appendix D.3). The whole converges as order 3 where 2 calls are left for the last step, else as order 2:
    its error is then that of one Euler step."""
    *inner, last = (float(s) for s in sigmas)
    end = last if last > 0 else inner[-1]
    calls = len(inner) if last > 0 else len(inner) - 1
    index = 0
    if calls:
        full = calls // 3
        orders = [3] * (full - 1) + [2, 1] if calls % 3 == 0 else [3] * full + [calls % 3]
        for index, order in enumerate(orders):
            sigma = between(inner[0], end, index / len(orders))
            sigma_next = between(inner[0], end, (index + 1) / len(orders))
            down, _ = ancestral(sigma, sigma_next, eta)
            down = max(down, end)
            denoised = denoise(x, sigma)
            eps = slope(x, denoised, sigma)
            if order == 1:
                x = x + (down - sigma) * eps
            elif order == 2:
                x = step_2(denoise, x, eps, sigma, down)
            else:
                x, _ = step_3(denoise, x, eps, sigma, down)
            up = math.sqrt(max(sigma_next**2 - down**2, 0.0)) if eta else 0.0
            x = add_noise(x, noise, sigma, sigma_next, s_noise * up)
            tell(on_step, index, sigma, sigma_next, x, denoised)
        index += 1
    return into_zero(denoise, x, end, last, index, on_step)


def into_zero(
    denoise: Denoise, x: Tensor, sigma: float, last: float, index: int, on_step: OnStep | None
) -> Tensor:
    """The step from the last positive level to a final 0, if there is one."""
    if last > 0:
        return x
    denoised = denoise(x, sigma)
    tell(on_step, index, sigma, 0.0, denoised, denoised)
    return denoised


def sample_dpm_adaptive(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    *,
    noise: Noise | None = None,
    on_step: OnStep | None = None,
    rtol: float = 0.05,
    atol: float = 0.0078,
    h_init: float = 0.05,
    accept: float = 0.81,
    eta: float = 0.0,
    s_noise: float = 1.0,
) -> Tensor:
    """Order 3 with steps as long as the difference to an order-2 estimate allows: three calls per tried step.

    rtol, atol: tolerance relative to the picture and absolute. h_init: first step in log sigma. Each image of
    a batch takes its own steps, so that its picture does not depend on its neighbours; `on_step` hears of the
    batch once, at the end.
    """
    *inner, last = (float(s) for s in sigmas)
    end = last if last > 0 else inner[-1]
    rows = []
    for index in range(len(x)):
        row = x[index : index + 1]
        own = one_of(noise, x, index)
        control = StepControl(h_init, 1.5 if eta else 3.0, accept)
        rows.append(adaptive(denoise, row, inner[0], end, own, rtol, atol, control, eta, s_noise))
    x = torch.cat(rows)
    if last > 0:
        return x
    return into_zero(denoise, x, end, last, len(inner) - 1, on_step)


def one_of(noise: Noise | None, x: Tensor, index: int) -> Noise | None:
    """The noise of one image, out of a function that draws for the whole batch."""
    return None if noise is None else lambda sigma, sigma_next: noise(sigma, sigma_next)[index : index + 1]


class StepControl:
    """The integral step size controller of the adaptive solver: lives for one image of one call."""

    def __init__(self, h: float, order: float, accept: float) -> None:
        self.h, self.order, self.accept = h, order, accept

    def propose(self, error: float) -> bool:
        """Take in the error of a step tried with h (1 is the tolerance); set the next h; say whether the step
        is good enough."""
        factor = (1 / (error + 1e-8)) ** (1 / self.order)
        factor = 1 + math.atan(factor - 1)  # never more than 2.6 times as long
        self.h *= factor
        return factor >= self.accept


def adaptive(
    denoise: Denoise,
    x: Tensor,
    start: float,
    end: float,
    noise: Noise | None,
    rtol: float,
    atol: float,
    control: StepControl,
    eta: float,
    s_noise: float,
) -> Tensor:
    """One image from level `start` down to `end`."""
    sigma, previous = start, x
    while sigma > end * (1 + 1e-9):
        sigma_next = max(end, sigma * math.exp(-control.h))
        down, up = sigma_next, 0.0
        if eta:
            down = max(end, ancestral(sigma, sigma_next, eta)[0])
            up = math.sqrt(max(sigma_next**2 - down**2, 0.0))
        eps = slope(x, denoise(x, sigma), sigma)
        high, eps_1 = step_3(denoise, x, eps, sigma, down)
        low = x + (down - sigma) * (
            eps + (eps_1 - eps) * 1.5
        )  # order 2 with r1 = 1/3, from calls already made
        tolerance = torch.clamp(rtol * torch.maximum(low.abs(), previous.abs()), min=atol)
        error = float(((low - high) / tolerance).square().mean().sqrt())
        if control.propose(error):
            previous = low
            x = add_noise(high, noise, sigma, sigma_next, s_noise * up)
            sigma = sigma_next
    return x
