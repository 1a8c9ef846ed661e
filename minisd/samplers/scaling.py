"""From what the network returns to the denoised picture, in the variance-exploding form x = z + sigma * n.

    eps       the noise n                   Ho et al. 2020
    v         sqrt(a) n - sqrt(1 - a) z     a = 1 / (1 + sigma^2); Salimans and Ho 2022 (arXiv:2202.00512)
    x0        the picture z itself
    edm_v     v, told 0.25 log sigma instead of a timestep (CosXL)
    edm_eps   (z - c_skip x) / c_out        Karras et al. 2022 (arXiv:2206.00364), table 1 (Playground v2.5)

The network sees c_in * x, of unit variance, and what `SigmaTable.told` makes of sigma.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor

Prediction = Literal["eps", "v", "x0", "edm_eps", "edm_v"]
EDM_DATA = 0.5  # standard deviation of the data that EDM's constants are made for


def c_in(sigma: float, prediction: Prediction = "eps") -> float:
    """Scale of the network's input: 1 / sqrt(variance of the data + sigma^2)."""
    data = EDM_DATA if prediction == "edm_eps" else 1.0
    return (data**2 + sigma**2) ** -0.5


def linear_in(sigma: float, prediction: Prediction) -> tuple[float, float]:
    """(keep, add) with denoised = keep x + add output: `denoised_from` as two numbers."""
    if prediction == "eps":
        return 1.0, -sigma
    if prediction in ("v", "edm_v"):
        return 1 / (sigma**2 + 1), -sigma / (sigma**2 + 1) ** 0.5
    if prediction == "x0":
        return 0.0, 1.0
    total = sigma**2 + EDM_DATA**2
    return EDM_DATA**2 / total, sigma * EDM_DATA / total**0.5


def denoised_from(output: Tensor, x: Tensor, sigma: float, prediction: Prediction) -> Tensor:
    """The denoised picture z, same shape as x [b c h w], from the network's output at noise level sigma."""
    if prediction == "eps":
        return x - sigma * output
    if prediction in ("v", "edm_v"):
        return x / (sigma**2 + 1) - output * (sigma / (sigma**2 + 1) ** 0.5)
    if prediction == "x0":
        return output
    if prediction == "edm_eps":
        total = sigma**2 + EDM_DATA**2
        return x * (EDM_DATA**2 / total) + output * (sigma * EDM_DATA / total**0.5)
    raise ValueError(f"prediction {prediction!r} is not one of eps, v, x0, edm_eps, edm_v")
