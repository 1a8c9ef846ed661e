"""UniPC: a predictor and a corrector of any order from one call per step.

Paper: Zhao et al. 2023 (arXiv:2302.04867), algorithms 1 and 2, data prediction. The corrector takes the call
that the next step needs anyway, made at the predicted x, and gains one order: order p converges as p + 1. bh1
and bh2 are its two choices of B(h).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from torch import Tensor

from minisd.samplers.step import Denoise, Noise, OnStep, euler_to, steps_of, tell


def weights(ratios: Sequence[float], h: float, variant: str) -> tuple[list[float], float]:
    """(weights of the differences D_k - D_0 over ratio_k, B): they solve sum_k rho_k r_k^(m-1) B = h^m-th phi
    term, m = 1 .. p.

    ratios: (lambda_k - lambda_0) / h of the points that the differences lead to.
    """
    hh = -h
    b_h = hh if variant == "bh1" else math.expm1(hh)
    right, phi, factorial = [], math.expm1(hh) / hh - 1, 1.0
    for m in range(1, len(ratios) + 1):
        right.append(phi * factorial / b_h)
        factorial *= m + 1
        phi = phi / hh - 1 / factorial
    matrix = np.array([[r**m for r in ratios] for m in range(len(ratios))])
    return [float(v) for v in np.linalg.solve(matrix, np.array(right))], b_h


def update(
    x: Tensor,
    newest: Tensor,
    differences: Sequence[Tensor],
    ratios: Sequence[float],
    sigma: float,
    sigma_next: float,
    variant: str,
) -> Tensor:
    """x at sigma_next, from x and D at sigma and the difference quotients towards other points."""
    out = euler_to(x, newest, sigma, sigma_next)
    if not ratios:
        return out
    # a single difference: 1/2, which the paper shows keeps the order
    rho, b_h = weights(ratios, math.log(sigma / sigma_next), variant)
    if len(ratios) == 1:
        rho = [0.5]
    for w, d in zip(rho, differences, strict=True):
        out = out - b_h * w * d
    return out


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
    past: list[tuple[Tensor, float]] = []  # (denoised, sigma), newest first
    start = x  # corrected x at the newest past level
    steps = steps_of(sigmas)
    to_zero = float(sigmas[-1]) == 0
    reach = 1  # points behind the last prediction
    for i, sigma, sigma_next in steps:
        denoised = denoise(x, sigma)
        if past:
            newest, level = past[0]
            earlier = past[1:reach]
            h = math.log(level / sigma)
            ratios = [math.log(level / s) / h for _, s in earlier] + [1.0]
            points = [d for d, _ in earlier] + [denoised]
            differences = [(d - newest) / r for d, r in zip(points, ratios, strict=True)]
            x = update(start, newest, differences, ratios, level, sigma, variant)
        past = [(denoised, sigma), *past][:order]
        start = x
        if sigma_next == 0:
            x = denoised
        else:
            # towards 0 the order falls with the steps that remain: the last step can only be of order 1
            reach = min(order, len(past), len(steps) - i if to_zero else order)
            h = math.log(sigma / sigma_next)
            ratios = [math.log(sigma / s) / h for _, s in past[1:reach]]
            differences = [(d - denoised) / r for (d, _), r in zip(past[1:reach], ratios, strict=True)]
            x = update(x, denoised, differences, ratios, sigma, sigma_next, variant)
        tell(on_step, i, sigma, sigma_next, x, denoised)
    return x
