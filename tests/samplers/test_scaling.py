"""Oracle: targets of training written out; a network that predicts them perfectly gives back the picture."""

from __future__ import annotations

import math
from typing import get_args

import pytest
import torch

from minisd.samplers.scaling import EDM_DATA, Prediction, c_in, denoised_from
from minisd.samplers.schedule import SigmaTable

Z, N = torch.randn(2, 2, 4, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def target(prediction: str, sigma: float) -> torch.Tensor:
    """What the network is trained to say of x = z + sigma n."""
    a = 1 / (1 + sigma**2)
    if prediction == "eps":
        return N
    if prediction in ("v", "edm_v"):
        return math.sqrt(a) * N - math.sqrt(1 - a) * Z
    if prediction == "x0":
        return Z
    data = EDM_DATA**2
    skip, out = data / (sigma**2 + data), sigma * EDM_DATA / math.sqrt(sigma**2 + data)
    return (Z - skip * (Z + sigma * N)) / out


@pytest.mark.parametrize("prediction", get_args(Prediction))
@pytest.mark.parametrize("sigma", [0.002, 0.3, 14.6, 4096.0])
def test_a_perfect_network_gives_the_picture(prediction: Prediction, sigma: float) -> None:
    """Oracle: the picture that went in."""
    denoised = denoised_from(target(prediction, sigma), Z + sigma * N, sigma, prediction)
    assert (denoised - Z).abs().max() < 1e-9 * (1 + sigma)


def test_the_network_sees_unit_variance() -> None:
    """Oracle: the variance of z + sigma n, for data of the variance each is made for."""
    for sigma in (0.1, 1.0, 80.0):
        assert c_in(sigma) ** 2 * (1 + sigma**2) == pytest.approx(1)
        assert c_in(sigma, "edm_eps") ** 2 * (EDM_DATA**2 + sigma**2) == pytest.approx(1)


def test_continuous_levels_are_told_as_logarithms() -> None:
    """Oracle: c_noise of Karras et al. 2022, table 1."""
    table = SigmaTable.edm(0.002, 80.0)
    assert table.sigma_min == pytest.approx(0.002) and table.sigma_max == pytest.approx(80.0)
    for sigma in (0.002, 0.5, 1.0, 80.0):
        assert table.told(sigma) == 0.25 * math.log(sigma)
    assert float(table.sigma(torch.tensor(table.timestep(0.5)))) == pytest.approx(0.5)


def test_an_unknown_prediction_is_refused() -> None:
    """Oracle: ValueError with those that exist."""
    with pytest.raises(ValueError, match="edm_v"):
        denoised_from(Z, Z, 1.0, "velocity")  # type: ignore[arg-type]
