"""From what the network returns to the denoised picture, in the variance-exploding form x = z + sigma * n.

    eps       the noise n                   Ho et al. 2020
    v         sqrt(a) n - sqrt(1 - a) z     a = 1 / (1 + sigma^2); Salimans and Ho 2022 (arXiv:2202.00512)
    x0        the picture z itself

The network sees c_in * x, of unit variance, and timestep t(sigma).
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor

Prediction = Literal["eps", "v", "x0"]


def c_in(sigma: float) -> float:
    """Scale of the network's input: 1 / sqrt(1 + sigma^2)."""
    return (1.0 + sigma**2) ** -0.5


def denoised_from(output: Tensor, x: Tensor, sigma: float, prediction: Prediction) -> Tensor:
    """The denoised picture z, same shape as x [b c h w], from the network's output at noise level sigma."""
    if prediction == "eps":
        return x - sigma * output
    if prediction == "v":
        return x / (sigma**2 + 1) - output * (sigma / (sigma**2 + 1) ** 0.5)
    if prediction == "x0":
        return output
    raise ValueError(f"prediction {prediction!r} is not one of eps, v, x0")
