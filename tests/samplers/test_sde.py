"""Oracle: the exact mean and variance of Gaussian data, without Monte Carlo; siblings at eta 0."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache

import pytest
import torch
from torch import Tensor

from minisd.samplers.names import SAMPLERS, solver
from minisd.samplers.schedule import SigmaTable, alphas_cumprod, karras_sigmas
from minisd.samplers.step import ancestral, between
from tests.samplers.gaussian import MEAN, SIGMA_MAX, SIGMA_MIN, STD, denoise, open_karras

Noise = Callable[[float, float], Tensor]


class BasisPath:
    """A Brownian motion that is a basis: row 2 + k of a batch moves on the kth fine interval of sigma alone.

    On Gaussian data a solver is affine in its noises, so the rows give its exact variance: the sum of what
    each unit of noise does, squared. Rows 0 and 1 hear no noise.
    """

    def __init__(self, levels: list[float]) -> None:
        self.levels = sorted(levels)
        self.rows = len(levels) + 1

    def __call__(self, sigma: float, sigma_next: float) -> Tensor:
        low, high = sorted((sigma, sigma_next))
        out = torch.zeros(self.rows, 1, 1, 1, dtype=torch.float64)
        for k, (a, b) in enumerate(zip(self.levels, self.levels[1:], strict=False)):
            if low < (a + b) / 2 < high:
                out[2 + k] = math.sqrt((b - a) / (high - low))
        return out


class BasisDraws:
    """Independent draws: row 2 + k hears the kth alone."""

    def __init__(self, rows: int) -> None:
        self.rows, self.count = rows, 0

    def __call__(self, sigma: float, sigma_next: float) -> Tensor:
        out = torch.zeros(self.rows, 1, 1, 1, dtype=torch.float64)
        out[2 + self.count] = 1.0
        self.count += 1
        return out


def moments(name: str, n: int, options: dict[str, object]) -> tuple[float, float]:
    """(error of the mean, relative error of the variance) at SIGMA_MIN, n steps from the exact marginal."""
    sigmas = open_karras(n)
    levels = [float(s) for s in sigmas]
    if SAMPLERS[name].noise == "brownian":
        levels += [between(a, b, 0.5) for a, b in zip(levels, levels[1:], strict=False)]
        noise: Noise = BasisPath(levels)
        rows = len(levels) + 1
    else:
        rows = 2 * n + 60  # restarts and churn draw more often than there are steps
        noise = BasisDraws(rows)
    # row 0: the mean; row 1: one standard deviation off; the others: the mean and one unit of noise
    start = torch.full((rows, 1, 1, 1), MEAN, dtype=torch.float64)
    start[1] += math.hypot(STD, SIGMA_MAX)
    out = solver(name)(denoise, start, sigmas, noise=noise, **options).flatten()
    variance = float((out[1:] - out[0]).square().sum())
    return float(out[0]) - MEAN, variance / (STD**2 + SIGMA_MIN**2) - 1


@cache
def variance_error(name: str, n: int, options: tuple[tuple[str, object], ...]) -> float:
    return abs(moments(name, n, dict(options))[1])


# (name, options, relative error of the variance at N = 10, 20, 40, 320 or None, slope from 160 to 320)
TABLE: list[tuple[str, dict[str, object], tuple[float, ...] | None, float]] = [
    ("euler_ancestral", {}, (0.46, 0.28, 0.16, 0.022), 0.98),
    ("ddim", {"eta": 1.0}, (0.46, 0.28, 0.16, 0.022), 0.98),
    ("ddpm", {}, (0.46, 0.28, 0.16, 0.022), 0.98),
    ("dpm_2_ancestral", {}, (0.32, 0.070, 0.017, 2.6e-4), 2.01),
    ("dpmpp_2s_ancestral", {}, (0.17, 0.053, 0.015, 2.5e-4), 1.98),
    ("dpmpp_sde", {}, (0.098, 0.026, 0.0059, 6.9e-5), 2.10),
    ("dpmpp_2m_sde", {}, (0.17, 0.067, 0.017, 2.5e-4), 2.01),
    ("dpmpp_2m_sde_heun", {}, (0.50, 0.14, 0.030, 4.2e-4), 2.02),
    ("dpmpp_3m_sde", {}, (0.59, 0.034, 0.0079, 1.3e-4), 1.99),
    ("dpmpp_3m_sde_exact", {}, None, 1.91),  # its noise is of order 2, whatever its mean is of
    ("er_sde_1", {}, None, 1.0),
    ("er_sde_2", {}, None, 2.0),
    ("er_sde", {}, None, 2.0),
    ("sa_solver", {}, None, 2.1),
    ("sa_solver", {"tau": 0.5}, None, 2.1),
    ("restart", {}, None, 2.0),
    ("euler", {"s_churn": 10.0}, None, 0.96),
    ("heun", {"s_churn": 10.0}, None, 2.0),
    ("dpm_2", {"s_churn": 10.0}, None, 2.0),
    ("dpmpp_2m_sde", {"eta": 0.5}, None, 2.0),
]


@pytest.mark.parametrize("name,options,errors,slope", TABLE)
def test_variance(
    name: str, options: dict[str, object], errors: tuple[float, ...] | None, slope: float
) -> None:
    """Oracle: the variance of the data plus sigma^2; figures measured elsewhere; slopes."""
    fixed = tuple(options.items())
    if errors is not None:
        for n, wanted in zip((10, 20, 40, 320), errors, strict=True):
            assert variance_error(name, n, fixed) == pytest.approx(wanted, rel=0.05)
    first, last = variance_error(name, 160, fixed), variance_error(name, 320, fixed)
    assert abs(math.log2(first / last) - slope) < 0.05
    assert last < (0.03 if slope < 1.5 else 5e-4)


@pytest.mark.parametrize("name,options", [(n, o) for n, o, _, _ in TABLE])
def test_mean(name: str, options: dict[str, object]) -> None:
    """Oracle: the mean of the data, from which no solver moves."""
    assert abs(moments(name, 20, options)[0]) <= 1e-12


def test_variance_that_is_forgotten() -> None:
    """Oracle: half of the noise left out, the variance must be wrong: the test can fail."""
    assert variance_error("dpmpp_2m_sde", 40, (("s_noise", 0.5),)) > 0.3
    assert variance_error("euler_ancestral", 320, (("s_noise", 0.5),)) > 0.3


def test_down_and_up() -> None:
    """Oracle: sigma_down^2 + sigma_up^2 = sigma_next^2 for ten thousand pairs; the ends of eta."""
    generator = torch.Generator().manual_seed(0)
    pairs = torch.rand(10_000, 3, generator=generator, dtype=torch.float64)
    for low, high, eta in pairs.tolist():
        sigma_next, sigma = sorted((14.6 * low + 1e-4, 14.6 * high + 2e-4))
        down, up = ancestral(sigma, sigma_next, eta)
        assert down**2 + up**2 == pytest.approx(sigma_next**2, rel=1e-15)
    assert ancestral(3.0, 2.0, 0.0) == (2.0, 0.0)
    assert ancestral(3.0, 0.0) == (0.0, 0.0)
    down, up = ancestral(3.0, 2.0)
    assert up**2 == pytest.approx(4 * 5 / 9) and down**2 == pytest.approx(4 * 4 / 9)


def nonlinear(x: Tensor, sigma: float) -> Tensor:
    return torch.tanh(x / (1 + sigma)) + 0.1 * torch.sin(3 * x / (1 + sigma**2) ** 0.5)


# without noise a stochastic solver is this one, exactly or to rounding
SIBLINGS: list[tuple[str, dict[str, object], str, dict[str, object], float]] = [
    ("euler_ancestral", {"eta": 0.0}, "euler", {}, 0.0),
    ("ddim", {"eta": 0.0}, "euler", {}, 0.0),
    ("dpm_2_ancestral", {"eta": 0.0}, "dpm_2", {}, 0.0),
    ("ddim_cfgpp", {"eta": 0.0}, "euler_cfgpp", {}, 0.0),
    ("dpmpp_sde", {"eta": 0.0}, "dpmpp_2s_ancestral", {"eta": 0.0}, 0.0),
    ("dpmpp_2m_sde", {"eta": 0.0}, "dpmpp_2m", {}, 0.0),
    ("dpmpp_2m_sde_heun", {"eta": 0.0}, "res_multistep", {}, 0.0),
    (
        "dpmpp_3m_sde_exact",
        {"eta": 0.0},
        "sa_solver",
        {"tau": 0.0, "predictor_order": 3, "corrector_order": 0, "authors_form": False},
        1e-12,
    ),
    (
        "sa_solver",
        {"tau": 0.0, "predictor_order": 2, "corrector_order": 0, "authors_form": False},
        "res_multistep",
        {},
        1e-12,
    ),
    ("restart", {"restarts": ()}, "heun", {}, 0.0),
    ("heun", {"s_churn": 5.0, "s_tmin": 20.0}, "heun", {}, 0.0),
    ("euler", {"s_churn": 5.0, "s_tmax": 0.001}, "euler", {}, 0.0),
    ("dpm_2", {"s_churn": 0.0}, "dpm_2", {}, 0.0),
    ("lms", {"order": 1}, "euler", {}, 1e-13),
    ("deis", {"order": 1}, "euler", {}, 1e-13),
    ("ipndm", {"order": 1}, "euler", {}, 1e-13),
]


@pytest.mark.parametrize("name,options,sibling,others,tolerance", SIBLINGS)
def test_without_noise_as_the_sibling(
    name: str, options: dict[str, object], sibling: str, others: dict[str, object], tolerance: float
) -> None:
    """Oracle: equality with another solver, bit for bit where both compute the same; no noise is drawn."""
    x = torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 14.6

    def refused(sigma: float, sigma_next: float) -> Tensor:
        raise AssertionError("noise was drawn")

    def both(x: Tensor, sigma: float) -> tuple[Tensor, Tensor]:
        guided = nonlinear(x, sigma)
        return guided, guided * 0.9

    call = both if SAMPLERS[name].both else nonlinear
    for sigmas in (open_karras(9), karras_sigmas(9, 0.03, 14.6)):
        if tolerance and sigmas[-1] == 0:
            continue  # towards 0 some lower their order and others do not
        ours = solver(name)(call, x, sigmas, noise=refused, **options)
        theirs = solver(sibling)(call, x, sigmas, **others)
        assert float((ours - theirs).abs().max()) <= tolerance


@pytest.mark.parametrize(
    "name", [n for n, s in SAMPLERS.items() if s.noise != "none" and n not in ("dpm_adaptive", "dpm_fast")]
)
def test_noise_is_asked_for_whole_steps(name: str) -> None:
    """Oracle: what is drawn lies between two different levels of the run, and something is drawn."""
    sigmas = karras_sigmas(24, 0.03, 14.6)
    x, asked = torch.zeros(1, 1, 1, 1, dtype=torch.float64), list[tuple[float, float]]()

    def noise(sigma: float, sigma_next: float) -> Tensor:
        asked.append((sigma, sigma_next))
        return torch.zeros_like(x)

    options: dict[str, object] = {"eta": 1.0} if SAMPLERS[name].eta is not None else {}
    if name == "tcd":
        options["table"] = SigmaTable.from_alphas(alphas_cumprod())
    call = (lambda x, s: (denoise(x, s),) * 2) if SAMPLERS[name].both else denoise
    solver(name)(call, x, sigmas, noise=noise, **options)
    assert len(asked) >= 1 and all(a != b and 0.03 <= min(a, b) and max(a, b) <= 14.6 for a, b in asked)
