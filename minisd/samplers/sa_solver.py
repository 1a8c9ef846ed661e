"""SA-Solver: Adams predictor and corrector for the reverse SDE, with a stochasticity tau that may change
along the way.

Paper: Xue et al. 2023 (arXiv:2309.05019), eq. 14 (predictor) and 17 (corrector), data prediction. Over a step
with h = log(sigma / sigma_next) and g = 1 + tau^2 the SDE reads, u running from -h to 0,

    x_next = exp(-tau^2 h) (sigma_next / sigma) x + g int exp(g u) D(u) du
             + sigma_next sqrt(1 - exp(-2 tau^2 h)) n

with D the polynomial through the last values. For two values the authors' code replaces its slope term by
that of a midpoint rule, a change of third order; `authors_form` follows it. The corrector reuses the
predictor's noise and the call that the next step needs anyway.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from torch import Tensor

from minisd.samplers.multistep import adams_weights, combined
from minisd.samplers.step import Denoise, Noise, OnStep, steps_of, tell


def step_weights(nodes: Sequence[float], h: float, tau: float, authors_form: bool) -> list[float]:
    """g int_{-h}^0 exp(g u) L_j(u) du for the polynomials of `nodes` (values of u, newest first)."""
    g = 1 + tau**2
    weights = [g * w for w in adams_weights(nodes, -h, 0.0, rate=g)]
    if authors_form and len(nodes) == 2:
        k = g * h
        # the exact weight of the slope, (k - 1 + exp(-k)) / g^2, gives way to h^2 / 2
        change = g * (h * h / 2 - (k + math.expm1(-k)) / g**2) / (nodes[0] - nodes[1])
        weights = [weights[0] + change, weights[1] - change]
    return weights


def adams_step(
    x: Tensor,
    points: Sequence[tuple[Tensor, float]],
    drawn: Tensor | None,
    sigma: float,
    sigma_next: float,
    tau: float,
    authors_form: bool,
) -> Tensor:
    """x at sigma_next from x at sigma; points: (denoised, level) that the polynomial goes through, newest
    first."""
    h = math.log(sigma / sigma_next)
    nodes = [
        math.log(sigma_next / level) for _, level in points
    ]  # u of the level: log(sigma_next) - log(level)
    weights = step_weights(nodes, h, tau, authors_form)
    out = math.exp(-(tau**2) * h) * (sigma_next / sigma) * x + combined(weights, [d for d, _ in points])
    if drawn is None:
        return out
    return out + drawn * (sigma_next * math.sqrt(-math.expm1(-2 * tau**2 * h)))


def sample_sa_solver(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    *,
    noise: Noise | None = None,
    on_step: OnStep | None = None,
    tau: Callable[[float], float] | float = 1.0,
    predictor_order: int = 2,
    corrector_order: int = 2,
    authors_form: bool = True,
) -> Tensor:
    """SA-Solver, one call per step. tau: stochasticity, a number or a function of sigma; 0 is the ODE. Orders
    1 to 4 of the predictor; the corrector's counts the point it corrects with, and 0 leaves it out. Order 1
    into sigma 0."""
    tau_of = tau if callable(tau) else lambda sigma, value=tau: value
    past: list[tuple[Tensor, float]] = []
    start, drawn, tau_last = x, None, 0.0
    steps = steps_of(sigmas)
    to_zero = float(sigmas[-1]) == 0
    keep = max(predictor_order, corrector_order - 1, 1)
    for i, sigma, sigma_next in steps:
        denoised = denoise(x, sigma)
        if past and corrector_order > 0:
            left = len(steps) - i + 2 if to_zero else corrector_order
            points = [(denoised, sigma), *past][: min(corrector_order, left)]
            x = adams_step(start, points, drawn, past[0][1], sigma, tau_last, authors_form)
        past = [(denoised, sigma), *past][:keep]
        start, tau_last = x, tau_of(sigma)
        if sigma_next == 0:
            x = denoised
        else:
            drawn = None
            if tau_last > 0:
                assert noise is not None, "SA-Solver draws noise unless tau is 0"
                drawn = noise(sigma, sigma_next)
            left = len(steps) - i if to_zero else predictor_order
            points = past[: min(predictor_order, left)]
            x = adams_step(x, points, drawn, sigma, sigma_next, tau_last, authors_form)
        tell(on_step, i, sigma, sigma_next, x, denoised)
    return x
