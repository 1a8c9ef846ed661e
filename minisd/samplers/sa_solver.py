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
from dataclasses import dataclass

from torch import Tensor

from minisd.samplers.multistep import adams_weights, combined, latest
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


@dataclass(frozen=True)
class Move:
    """An Adams step: numbers that the levels alone decide. keep: of x; weights: of D at the points that the
    polynomial goes through, newest first; std: of the noise."""

    keep: float
    weights: tuple[float, ...]
    std: float

    def take(self, x: Tensor, points: Sequence[Tensor], drawn: Tensor | None) -> Tensor:
        """x at sigma_next from x at sigma and D at the points."""
        out = self.keep * x + combined(self.weights, points)
        return out if drawn is None else out + drawn * self.std


def move_to(points: Sequence[float], sigma: float, sigma_next: float, tau: float, authors_form: bool) -> Move:
    """The move from sigma to sigma_next whose polynomial goes through D at the levels `points`."""
    h = math.log(sigma / sigma_next)
    nodes = [math.log(sigma_next / s) for s in points]  # u of the level: log(sigma_next) - log(level)
    weights = step_weights(nodes, h, tau, authors_form)
    keep = math.exp(-(tau**2) * h) * (sigma_next / sigma)
    return Move(keep, tuple(weights), sigma_next * math.sqrt(-math.expm1(-2 * tau**2 * h)))


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
    steps, levels = steps_of(sigmas), sigmas.tolist()
    to_zero = levels[-1] == 0
    keep = max(predictor_order, corrector_order - 1, 1)
    taus = [tau_of(sigma) for _, sigma, _ in steps]
    predictors, correctors = list[Move](), list[Move]()  # of the steps; the order falls before sigma 0
    for i, sigma, sigma_next in steps[:-1] if to_zero else steps:
        left = len(steps) - i if to_zero else predictor_order
        before = latest(levels, i, min(predictor_order, left))
        predictors.append(move_to(before, sigma, sigma_next, taus[i], authors_form))
        if corrector_order > 0:
            left = len(steps) - i + 1 if to_zero else corrector_order
            points = latest(levels, i + 1, min(corrector_order, left))
            correctors.append(move_to(points, sigma, sigma_next, taus[i], authors_form))
    past: list[Tensor] = []  # denoised, newest first
    start, drawn = x, None
    for i, sigma, sigma_next in steps:
        denoised = denoise(x, sigma)
        if past and corrector_order > 0:
            corrector = correctors[i - 1]
            x = corrector.take(start, [denoised, *past][: len(corrector.weights)], drawn)
        past = [denoised, *past][:keep]
        start = x
        if sigma_next == 0:
            x = denoised
        else:
            drawn = None
            if taus[i] > 0:
                assert noise is not None, "SA-Solver draws noise unless tau is 0"
                drawn = noise(sigma, sigma_next)
            predictor = predictors[i]
            x = predictor.take(x, past[: len(predictor.weights)], drawn)
        tell(on_step, i, sigma, sigma_next, x, denoised)
    return x
