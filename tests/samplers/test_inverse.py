"""Oracle: the exact solution for Gaussian data, upwards; the way back; the levels as given."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from minisd.samplers.inverse import sample_ddim_inverse, sample_dpmpp_2m_inverse
from minisd.samplers.names import solver
from minisd.samplers.step import Step
from tests.samplers import gaussian

INVERSE: dict[str, tuple[Callable[..., Tensor], int]] = {
    "ddim": (sample_ddim_inverse, 1),
    "dpmpp_2m": (sample_dpmpp_2m_inverse, 2),
}
CLEAN = gaussian.starts() / 10


@pytest.mark.parametrize("name", list(INVERSE))
def test_order_there_and_back(name: str) -> None:
    """Oracle: picture to noise is the exact solution, and back again the start, with the solver's order."""
    invert, order = INVERSE[name]
    begin = gaussian.solution(CLEAN, 0.0, gaussian.SIGMA_MIN)
    there, back = list[float](), list[float]()
    for n in (40, 160):
        falling = gaussian.open_karras(n)
        up = invert(gaussian.denoise, begin, falling.flip(0))
        exact = gaussian.solution(begin, gaussian.SIGMA_MIN, gaussian.SIGMA_MAX)
        there.append(float((up - exact).abs().max()))
        back.append(float((solver(name)(gaussian.denoise, up, falling) - begin).abs().max()))
    assert abs(math.log2(there[0] / there[1]) / 2 - order) < 0.15
    assert math.log2(back[0] / back[1]) / 2 > order - 0.15  # errors of the two ways may cancel
    assert back[1] < 0.1


@pytest.mark.parametrize("name", list(INVERSE))
def test_from_the_clean_picture(name: str) -> None:
    """Oracle: the exact solution from sigma 0, whose call is told the next level; one call per step."""
    invert, _ = INVERSE[name]
    rising = torch.cat([torch.zeros(1, dtype=torch.float64), gaussian.open_karras(160).flip(0)])
    told, heard = list[float](), list[Step]()

    def denoise(x: Tensor, sigma: float) -> Tensor:
        told.append(sigma)
        return gaussian.denoise(x, sigma)

    up = invert(denoise, CLEAN, rising, on_step=heard.append)
    exact = gaussian.solution(CLEAN, 0.0, gaussian.SIGMA_MAX)
    assert (up - exact).abs().max() < 0.03 * exact.abs().max()
    assert told[:2] == [float(rising[1])] * 2 and len(told) == 161
    assert [(s.index, s.sigma) for s in heard] == [(i, float(s)) for i, s in enumerate(rising[:-1])]
    assert torch.equal(heard[-1].x, up)


def test_ddim_itself_runs_upwards() -> None:
    """Oracle: bits of its inverse, up to the rounding of another order of operations, at eta 0."""
    rising = gaussian.open_karras(20).flip(0)
    begin = gaussian.solution(CLEAN, 0.0, gaussian.SIGMA_MIN)
    up = solver("ddim")(gaussian.denoise, begin, rising)
    assert (up - sample_ddim_inverse(gaussian.denoise, begin, rising)).abs().max() < 1e-12


@pytest.mark.parametrize("levels", [[3.0, 2.0], [1.0], [-1.0, 2.0], [1.0, 1.0], [1.0, math.nan]])
@pytest.mark.parametrize("name", list(INVERSE))
def test_levels_that_do_not_rise(name: str, levels: list[float]) -> None:
    """Oracle: the documented ValueError."""
    with pytest.raises(ValueError, match="rise"):
        INVERSE[name][0](gaussian.denoise, CLEAN, torch.tensor(levels, dtype=torch.float64))
