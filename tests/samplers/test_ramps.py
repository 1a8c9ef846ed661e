"""Oracle: k-diffusion, scipy and formulas written out: the schedules beyond those of test_schedule.py."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats
import torch

from minisd.samplers import ramps
from minisd.samplers.schedule import SigmaTable, alphas_cumprod
from tests.samplers import kdiffusion
from tests.samplers.test_schedule import float64

K = kdiffusion.load()
TABLE = SigmaTable.from_alphas(alphas_cumprod())


@pytest.mark.parametrize("n,rho", [(1, 1.0), (2, 0.7), (20, 1.0), (20, 2.5)])
def test_polyexponential_as_k_diffusion(n: int, rho: float) -> None:
    """Oracle: k-diffusion in float64."""
    with float64():
        theirs = K.get_sigmas_polyexponential(n, 0.03, 14.6, rho)
    ours = ramps.polyexponential_sigmas(n, 0.03, 14.6, rho)
    assert (ours - theirs).abs().max() < 1e-12 and (ours.diff() < 0).all()


@pytest.mark.parametrize("n", [1, 2, 5, 20, 50])
def test_beta_as_scipy(n: int) -> None:
    """Oracle: scipy.stats.beta.ppf at evenly spaced quantiles, rounded to trained levels, doubles dropped."""
    quantiles = scipy.stats.beta.ppf(1 - np.linspace(0, 1, n, endpoint=False), 0.6, 0.6)
    places = list(dict.fromkeys(np.rint(quantiles * 999).astype(int).tolist()))
    assert torch.equal(ramps.beta_sigmas(n, TABLE), ramps.with_zero(TABLE.sigmas[places]))


@pytest.mark.parametrize("a,b", [(0.6, 0.6), (1.0, 1.0), (2.0, 0.5), (0.3, 4.0)])
def test_beta_quantiles(a: float, b: float) -> None:
    """Oracle: scipy.stats.beta, both ways."""
    for p in (0.0, 1e-6, 0.01, 0.3, 0.5, 0.77, 0.999, 1.0):
        assert ramps.beta_quantile(p, a, b) == pytest.approx(scipy.stats.beta.ppf(p, a, b), abs=1e-12)
        assert ramps.incomplete_beta(p, a, b) == pytest.approx(scipy.stats.beta.cdf(p, a, b), abs=1e-12)


def test_schedules_by_formula() -> None:
    """Oracle: the formulas of the community's schedules, written out with numpy for 10 steps."""
    s, low, high = TABLE.sigmas.numpy(), TABLE.sigma_min, TABLE.sigma_max
    i = np.arange(10)
    wanted = {
        "exponential": high * (low / high) ** (i / 9),
        "karras": (high ** (1 / 7) + i / 9 * (low ** (1 / 7) - high ** (1 / 7))) ** 7,
        "kl_optimal": np.tan(i / 9 * math.atan(low) + (1 - i / 9) * math.atan(high)),
        "simple": s[999 - i * 100],
        "ddim": s[(i * 100 + 1)[::-1]],
        "turbo": s[999 - i * 100],
        "sgm_uniform": np.exp(np.interp(999 - i * 99.9, np.arange(1000), np.log(s))),
        "align_your_steps": ramps.ALIGN_YOUR_STEPS["sd1"][:10],
    }
    for name, levels in wanted.items():
        ours = ramps.RAMPS[name](10, TABLE, "sd1")
        assert ours[-1] == 0 and ours.dtype == torch.float64
        assert np.abs(ours[:-1].numpy() - np.asarray(levels)).max() < 1e-12, name


def test_linear_quadratic() -> None:
    """Oracle: half of the steps fall by a 40th, evenly; then a parabola with the same slope to 0."""
    levels = ramps.linear_quadratic_sigmas(20, 1.0)
    assert levels[10] == pytest.approx(1 - 0.025) and levels[-1] == 0
    assert levels[:11].diff().tolist() == pytest.approx([-0.0025] * 10)
    bends = levels[10:].diff().diff()
    assert bends.tolist() == pytest.approx([float(bends[0])] * 9) and bends[0] < 0


@pytest.mark.parametrize("name", list(ramps.RAMPS))
@pytest.mark.parametrize("n", [1, 2, 3, 7, 20, 50])
def test_every_schedule_falls_to_zero(name: str, n: int) -> None:
    """Oracle: first level the table's last, each below the one before, last 0, as many steps as asked for."""
    levels = ramps.RAMPS[name](n, TABLE, "sdxl")
    assert (levels.diff() < 0).all() and levels[-1] == 0.0 and torch.isfinite(levels).all()
    top = {"ddim": TABLE.sigmas[1 + (1000 // n) * (n - 1)].item(), "align_your_steps": 14.615}
    assert float(levels[0]) == pytest.approx(top.get(name, TABLE.sigma_max), rel=1e-12)
    assert len(levels) == n + 1 or (name == "beta" and n // 2 < len(levels) <= n + 1)
