"""UniPC: a predictor and a corrector of any order from one call per step.

Paper: Zhao et al. 2023 (arXiv:2302.04867), algorithms 1 and 2, data prediction. The corrector takes the call
that the next step needs anyway, made at the predicted x, and gains one order: order p converges as p + 1. bh1
and bh2 are its two choices of B(h).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from minisd.samplers.step import Denoise, Noise, OnStep, euler_to, steps_of, tell


@dataclass(frozen=True)
class Move:
    """A step from sigma to sigma_next, given D there and at other points: numbers that the levels alone
    decide.

    ratios: (lambda_k - lambda) / h of the points. scales: rho_k B(h), what their difference quotients weigh.
    """

    sigma: float
    sigma_next: float
    ratios: tuple[float, ...]
    scales: tuple[float, ...]

    def take(self, x: Tensor, newest: Tensor, points: Sequence[Tensor]) -> Tensor:
        """x at sigma_next, from x and D at sigma and D at the other points."""
        out = euler_to(x, newest, self.sigma, self.sigma_next)
        for point, ratio, scale in zip(points, self.ratios, self.scales, strict=True):
            difference = point - newest
            if ratio != 1:
                difference /= ratio
            difference *= scale
            out -= difference
        return out


def move_to(others: Sequence[float], sigma: float, sigma_next: float, variant: str) -> Move:
    """The move that also sees D at the levels `others`. Its weights rho_k solve sum_k rho_k r_k^(m-1) B =
    h^m-th phi term, m = 1 .. p; for a single point 1/2, which the paper shows keeps the order."""
    h = math.log(sigma / sigma_next)
    ratios = [math.log(sigma / s) / h for s in others]
    hh = -h
    b_h = hh if variant == "bh1" else math.expm1(hh)
    right, phi, factorial = [], math.expm1(hh) / hh - 1, 1.0
    for m in range(1, len(ratios) + 1):
        right.append(phi * factorial / b_h)
        factorial *= m + 1
        phi = phi / hh - 1 / factorial
    rho = [0.5]
    if len(ratios) != 1:
        matrix = np.array([[r**m for r in ratios] for m in range(len(ratios))])
        rho = np.linalg.solve(matrix, np.array(right)).tolist() if ratios else []
    return Move(sigma, sigma_next, tuple(ratios), tuple(b_h * w for w in rho))


def moves_over(levels: Sequence[float], order: int, variant: str) -> list[tuple[Move, Move]]:
    """Predictor and corrector of every step but that into sigma 0. Towards 0 the order falls with the steps
    that remain: the last step can only be of order 1."""
    count, to_zero = len(levels) - 1, levels[-1] == 0
    moves = []
    for i in range(count - 1 if to_zero else count):
        reach = min(order, i + 1, count - i if to_zero else order)
        earlier = [levels[i - k] for k in range(1, reach)]
        ends = levels[i], levels[i + 1]
        moves.append((move_to(earlier, *ends, variant), move_to([*earlier, ends[1]], *ends, variant)))
    return moves


def sample_unipc(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    *,
    noise: Noise | None = None,
    on_step: OnStep | None = None,
    order: int = 2,
    variant: str = "bh2",
) -> Tensor:
    """UniPC of order 1 to 3 (converging as order + 1), one call per step, order 1 and no corrector into sigma
    0.

    variant: "bh1" or "bh2". Raises ValueError for another.
    """
    if variant not in ("bh1", "bh2"):
        raise ValueError(f"UniPC has the variants bh1 and bh2, not {variant!r}")
    moves = moves_over(sigmas.tolist(), order, variant)
    past: list[Tensor] = []  # denoised, newest first
    start = x  # corrected x at the newest past level
    for i, sigma, sigma_next in steps_of(sigmas):
        denoised = denoise(x, sigma)
        if past:
            corrector = moves[i - 1][1]
            x = corrector.take(start, past[0], [*past[1 : len(corrector.ratios)], denoised])
        past = [denoised, *past][:order]
        start = x
        if sigma_next == 0:
            x = denoised
        else:
            predictor = moves[i][0]
            x = predictor.take(x, denoised, past[1 : len(predictor.ratios) + 1])
        tell(on_step, i, sigma, sigma_next, x, denoised)
    return x
