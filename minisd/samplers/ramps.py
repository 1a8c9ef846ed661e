"""Further noise schedules, by name: each gives float64 [n + 1] levels from a table, falling, with a final 0.

Sources: Karras et al. 2022 (arXiv:2206.00364); Sabour et al. 2024, Align Your Steps (arXiv:2404.14507) with
its closed form in appendix A ("kl_optimal"); Lee et al. 2024, beta sampling (arXiv:2407.12173); Polyak et al.
2024, Movie Gen (arXiv:2410.13720) for linear-quadratic; Luo et al. 2023 (arXiv:2310.04378) for LCM's steps.
"simple", "normal", "sgm_uniform" and "ddim" are the community's names for ways through the training table.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from minisd.samplers.schedule import SigmaTable, exponential_sigmas, karras_sigmas, spaced_timesteps

# published levels of Align Your Steps, ten steps, for SD1 and SDXL
ALIGN_YOUR_STEPS = {
    "sd1": (14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.029),
    "sdxl": (14.615, 6.315, 3.771, 2.181, 1.342, 0.862, 0.555, 0.380, 0.234, 0.113, 0.029),
}
LCM_TRAINED_STEPS = 50  # LCMs are distilled on every 20th timestep


def with_zero(levels: Tensor) -> Tensor:
    return torch.cat([levels.double(), torch.zeros(1, dtype=torch.float64)])


def check_steps(n: int, most: int) -> None:
    if not 1 <= n <= most:
        raise ValueError(f"steps is {n}; this schedule has 1 to {most}")


def polyexponential_sigmas(n: int, sigma_min: float, sigma_max: float, rho: float = 1.0) -> Tensor:
    """log sigma falls as a power rho of the way; rho 1 is exponential."""
    ramp = torch.linspace(1, 0, n, dtype=torch.float64) ** rho
    levels = (ramp * (math.log(sigma_max) - math.log(sigma_min)) + math.log(sigma_min)).exp()
    levels[0] = sigma_max
    return with_zero(levels)


def kl_optimal_sigmas(n: int, sigma_min: float, sigma_max: float) -> Tensor:
    """Evenly spaced in arctan sigma: optimal for Gaussian data."""
    ramp = torch.linspace(0, 1, n, dtype=torch.float64)
    levels = (ramp * math.atan(sigma_min) + (1 - ramp) * math.atan(sigma_max)).tan()
    levels[0] = sigma_max
    return with_zero(levels)


def sgm_uniform_sigmas(n: int, table: SigmaTable) -> Tensor:
    """n timesteps evenly from the last towards the first, the first left out."""
    return with_zero(table.sigma(torch.linspace(len(table.sigmas) - 1, 0, n + 1, dtype=torch.float64)[:-1]))


def simple_sigmas(n: int, table: SigmaTable) -> Tensor:
    """Every (N / n)th trained level from the last down, rounded towards the last."""
    check_steps(n, len(table.sigmas))
    places = [len(table.sigmas) - 1 - int(i * len(table.sigmas) / n) for i in range(n)]
    return with_zero(table.sigmas[places])


def ddim_sigmas(n: int, table: SigmaTable) -> Tensor:
    """Multiples of N // n plus 1: the timesteps that DDIM was released with."""
    t = spaced_timesteps(n, "leading", num_train_timesteps=len(table.sigmas), offset=1)
    return with_zero(table.sigma(t))


def trailing_sigmas(n: int, table: SigmaTable) -> Tensor:
    """Multiples of N / n from the last down: the step sets of Turbo, Lightning and Hyper models (999, 749,
    499, 249)."""
    return with_zero(table.sigma(spaced_timesteps(n, "trailing", num_train_timesteps=len(table.sigmas))))


def lcm_sigmas(n: int, table: SigmaTable) -> Tensor:
    """n of the fifty timesteps that LCMs are distilled on, evenly, from the last down."""
    check_steps(n, LCM_TRAINED_STEPS)
    stride = len(table.sigmas) // LCM_TRAINED_STEPS
    trained = [(i + 1) * stride - 1 for i in range(LCM_TRAINED_STEPS)][::-1]
    return with_zero(table.sigmas[[trained[int(i * LCM_TRAINED_STEPS / n)] for i in range(n)]])


def align_your_steps_sigmas(n: int, family: str) -> Tensor:
    """The published levels, log-linearly interpolated to n steps; the last becomes 0. family: sd1 or sdxl."""
    known = np.log(ALIGN_YOUR_STEPS["sdxl" if family.startswith("sdxl") else "sd1"])
    levels = np.exp(np.interp(np.linspace(0, 1, n + 1), np.linspace(0, 1, len(known)), known))
    return with_zero(torch.from_numpy(levels[:-1]))


def linear_quadratic_sigmas(n: int, sigma_max: float, threshold: float = 0.025) -> Tensor:
    """Half of the steps on the first `threshold` of the way, linearly; then quadratically to 0."""
    if n == 1:
        return torch.tensor([sigma_max, 0.0], dtype=torch.float64)
    linear = n // 2
    rest = n - linear
    slope = threshold / linear
    i = torch.arange(n + 1, dtype=torch.float64)
    # the parabola continues the line with its slope and arrives at 1 after `rest` steps
    bend = (1 - threshold - slope * rest) / rest**2
    share = torch.where(i < linear, slope * i, threshold + slope * (i - linear) + bend * (i - linear) ** 2)
    levels = sigma_max * (1 - share)
    levels[-1] = 0.0
    return levels


def beta_sigmas(n: int, table: SigmaTable, alpha: float = 0.6, beta: float = 0.6) -> Tensor:
    """Timesteps at evenly spaced quantiles of a beta distribution, which crowds them at both ends; doubles
    are dropped."""
    last = len(table.sigmas) - 1
    places = [round(beta_quantile(1 - i / n, alpha, beta) * last) for i in range(n)]
    kept = [p for i, p in enumerate(places) if i == 0 or p != places[i - 1]]
    return with_zero(table.sigmas[kept])


def beta_quantile(p: float, a: float, b: float) -> float:
    """The x with I_x(a, b) = p, to 1e-13, by bisection."""
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if incomplete_beta(middle, a, b) < p else (low, middle)
    return (low + high) / 2 if 0 < p < 1 else float(p >= 1)


def incomplete_beta(x: float, a: float, b: float) -> float:
    """Regularised incomplete beta function I_x(a, b), by its power series on the side where that converges
    fast."""
    if x <= 0 or x >= 1:
        return float(x >= 1)
    if x > 0.5:
        return 1 - incomplete_beta(1 - x, b, a)
    # int_0^x t^(a-1) (1-t)^(b-1) dt = x^a sum_k (1-b)_k / (k! (a+k)) x^k
    term, total = 1.0, 1.0 / a
    for k in range(1, 200):
        term *= (k - b) / k * x
        total += term / (a + k)
    log_beta = math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)
    return math.exp(a * math.log(x) - log_beta) * total


Ramp = Callable[[int, SigmaTable, str], Tensor]
RAMPS: dict[str, Ramp] = {
    "karras": lambda n, t, family: karras_sigmas(n, t.sigma_min, t.sigma_max),
    "exponential": lambda n, t, family: exponential_sigmas(n, t.sigma_min, t.sigma_max),
    "polyexponential": lambda n, t, family: polyexponential_sigmas(n, t.sigma_min, t.sigma_max),
    "sgm_uniform": lambda n, t, family: sgm_uniform_sigmas(n, t),
    "simple": lambda n, t, family: simple_sigmas(n, t),
    "ddim": lambda n, t, family: ddim_sigmas(n, t),
    "turbo": lambda n, t, family: trailing_sigmas(n, t),
    "lcm": lambda n, t, family: lcm_sigmas(n, t),
    "beta": lambda n, t, family: beta_sigmas(n, t),
    "kl_optimal": lambda n, t, family: kl_optimal_sigmas(n, t.sigma_min, t.sigma_max),
    "align_your_steps": lambda n, t, family: align_your_steps_sigmas(n, family),
    "linear_quadratic": lambda n, t, family: linear_quadratic_sigmas(n, t.sigma_max),
}


def custom_sigmas(levels: Sequence[float]) -> Tensor:
    """A list of levels given by hand: falling, positive but for a last 0. Raises ValueError for anything
    else."""
    values = torch.tensor(list(levels), dtype=torch.float64)
    ok = len(values) >= 2 and bool(torch.isfinite(values).all()) and bool((values[1:] < values[:-1]).all())
    if not ok or float(values[-1]) < 0:
        raise ValueError(
            "sigmas must be at least two finite numbers, each below the one before, none below 0"
        )
    return values


def without_next_to_last(sigmas: Tensor) -> Tensor:
    """The levels without the last positive one (A1111's option for few-step schedules); three or more are
    needed."""
    return torch.cat([sigmas[:-2], sigmas[-1:]]) if len(sigmas) > 2 else sigmas
