"""Noise levels: the table a model was trained with, and which of its levels a run visits.

Papers: Ho et al. 2020 (arXiv:2006.11239) for the table, Karras et al. 2022 (arXiv:2206.00364) eq. 5 for
`karras_sigmas`, Lin et al. 2023 (arXiv:2305.08891) for the spacings (table 2) and zero terminal SNR
(algorithm 1). All values are float64. sigma is the standard deviation of the noise relative to unit-variance
latents: sigma^2 = (1 - a) / a with a = alphas_cumprod.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

Spacing = Literal["linspace", "leading", "trailing", "sgm"]
ZERO_SNR_ALPHA = (
    2.0**-24
)  # stands for the exact 0 of zero terminal SNR, whose sigma would be infinite: sigma 4096


def alphas_cumprod(
    num_train_timesteps: int = 1000,
    beta_start: float = 0.00085,
    beta_end: float = 0.012,
    beta_schedule: Literal["scaled_linear", "linear"] = "scaled_linear",
    *,
    zero_terminal_snr: bool = False,
) -> Tensor:
    """The share of signal left after t + 1 training steps, float64 [num_train_timesteps], falling."""
    n = num_train_timesteps
    if beta_schedule == "scaled_linear":
        betas = torch.linspace(beta_start**0.5, beta_end**0.5, n, dtype=torch.float64) ** 2
    else:
        betas = torch.linspace(beta_start, beta_end, n, dtype=torch.float64)
    alphas = torch.cumprod(1.0 - betas, dim=0)
    return rescaled_to_zero_snr(alphas) if zero_terminal_snr else alphas


def rescaled_to_zero_snr(alphas: Tensor) -> Tensor:
    """Shift and scale sqrt(alphas_cumprod) so that the last is 0 and the first unchanged (Lin et al. 2023,
    algorithm 1)."""
    root = alphas.sqrt()
    root = (root - root[-1]) * root[0] / (root[0] - root[-1])
    out = root**2
    out[-1] = ZERO_SNR_ALPHA
    return out


@dataclass(frozen=True)
class SigmaTable:
    """The training noise levels, and the way between sigma and timestep.

    interpolation: "log" (k-diffusion: log sigma is linear in t) or "linear" (diffusers: sigma is linear in t)
    between the trained levels. quantised: a sigma is given the nearest trained timestep instead of a
    fractional one. continuous: the network is told 0.25 log sigma (EDM) instead of a timestep.
    """

    sigmas: Tensor  # float64 [num_train_timesteps], rising
    interpolation: Literal["log", "linear"] = "log"
    quantised: bool = False
    continuous: bool = False

    @classmethod
    def edm(cls, sigma_min: float, sigma_max: float, levels: int = 1000) -> SigmaTable:
        """For models trained on all levels of a range (Karras et al. 2022, section 5): a table even in log
        sigma stands for them, so that every schedule can be used; the network is told 0.25 log sigma."""
        log = torch.linspace(math.log(sigma_min), math.log(sigma_max), levels, dtype=torch.float64)
        return cls(log.exp(), continuous=True)

    @classmethod
    def from_alphas(
        cls, alphas: Tensor, *, interpolation: Literal["log", "linear"] = "log", quantised: bool = False
    ) -> SigmaTable:
        return cls(((1 - alphas) / alphas).sqrt(), interpolation, quantised)

    @property
    def sigma_min(self) -> float:
        return float(self.sigmas[0])

    @property
    def sigma_max(self) -> float:
        return float(self.sigmas[-1])

    def sigma(self, timesteps: Tensor) -> Tensor:
        """Noise levels of (fractional) timesteps, float64, same shape. Timesteps beyond the table are clamped
        to it."""
        t = timesteps.double().clamp(0, len(self.sigmas) - 1)
        low = t.floor().long().clamp(max=len(self.sigmas) - 2)
        share = t - low
        a, b = self.sigmas[low], self.sigmas[low + 1]
        if self.interpolation == "linear":
            return a + share * (b - a)
        # lerp of logs hits the trained levels only up to rounding; take those exactly
        between = (a.log() * (1 - share) + b.log() * share).exp()
        return torch.where(share == 0, a, torch.where(share == 1, b, between))

    @cached_property
    def levels(self) -> list[float]:
        """The levels as Python numbers: a network call looks one up."""
        return self.sigmas.tolist()

    def told(self, sigma: float) -> float:
        """What the network is told of a noise level: its timestep, or 0.25 log sigma."""
        return 0.25 * math.log(sigma) if self.continuous else self.timestep(sigma)

    def timestep(self, sigma: float) -> float:
        """The (fractional) timestep of a noise level, clamped to the table; a whole number for every trained
        level."""
        table = self.levels
        high = min(max(bisect_left(table, sigma), 1), len(table) - 1)
        a, b = table[high - 1], table[high]
        if self.interpolation == "linear":
            share = (sigma - a) / (b - a)
        else:
            share = (math.log(max(sigma, 1e-300)) - math.log(a)) / (math.log(b) - math.log(a))
        t = high - 1 + min(max(share, 0.0), 1.0)
        nearest = float(round(t))
        return nearest if self.quantised or abs(t - nearest) < 1e-6 else t


def spaced_timesteps(n: int, spacing: Spacing, *, num_train_timesteps: int = 1000, offset: int = 0) -> Tensor:
    """`n` training timesteps, float64 [n], falling.

    linspace: evenly from the last to 0, both included, fractional. leading: multiples of num // n from 0 up,
    plus `offset` (Stable Diffusion's own scripts use 1). trailing: multiples of num / n from the last down,
    rounded. sgm: from the last down in n equal parts, rounded down (LegacyDDPMDiscretization of
    Stability-AI/generative-models). Raises ValueError if n is not in 1 .. num_train_timesteps.
    """
    if not 1 <= n <= num_train_timesteps:
        raise ValueError(f"steps is {n}; this table has 1 to {num_train_timesteps}")
    if spacing == "linspace":
        if n == 1:
            return torch.tensor([num_train_timesteps - 1.0], dtype=torch.float64)
        return torch.linspace(num_train_timesteps - 1, 0, n, dtype=torch.float64)
    if spacing == "leading":
        t = torch.arange(n, dtype=torch.float64).flip(0) * (num_train_timesteps // n) + offset
        if t[0] > num_train_timesteps - 1:  # clamped, two steps would share a level
            raise ValueError(
                f"{n} leading steps with offset {offset} begin at timestep {int(t[0])}; this table ends at "
                f"{num_train_timesteps - 1}: take fewer steps or a smaller offset"
            )
        return t
    if spacing == "trailing":
        t = num_train_timesteps - torch.arange(n, dtype=torch.float64) * (num_train_timesteps / n)
        return t.round() - 1
    if spacing == "sgm":
        last = num_train_timesteps - 1
        return (last - torch.arange(n, dtype=torch.float64) * (last / n)).floor()
    raise ValueError(f"spacing {spacing!r} is not one of linspace, leading, trailing, sgm")


def table_sigmas(
    n: int, table: SigmaTable, *, spacing: Spacing = "linspace", offset: int = 0, final: float = 0.0
) -> Tensor:
    """Levels of `n` spaced training timesteps and a last one, `final`: float64 [n + 1], falling."""
    t = spaced_timesteps(n, spacing, num_train_timesteps=len(table.sigmas), offset=offset)
    return torch.cat([table.sigma(t), torch.tensor([final], dtype=torch.float64)])


def karras_sigmas(n: int, sigma_min: float, sigma_max: float, rho: float = 7.0) -> Tensor:
    """Noise levels of Karras et al. 2022 (arXiv:2206.00364) eq. 5, with a final 0.

    Returns float64 [n + 1], falling. n = 1 gives [sigma_max, 0]. Raises ValueError if n < 1 or not 0 <
    sigma_min < sigma_max.
    """
    if n < 1 or not 0 < sigma_min < sigma_max:
        raise ValueError(
            f"karras needs n >= 1 and 0 < sigma_min < sigma_max; got {n}, {sigma_min}, {sigma_max}"
        )
    ramp = torch.linspace(0, 1, n, dtype=torch.float64)
    low, high = sigma_min ** (1 / rho), sigma_max ** (1 / rho)
    sigmas = (high + ramp * (low - high)) ** rho
    sigmas[0] = sigma_max  # exactly, whatever rounding the two powers left
    return torch.cat([sigmas, torch.zeros(1, dtype=torch.float64)])


def exponential_sigmas(n: int, sigma_min: float, sigma_max: float) -> Tensor:
    """Noise levels evenly spaced in log sigma, with a final 0: float64 [n + 1], falling."""
    if n < 1 or not 0 < sigma_min < sigma_max:
        raise ValueError(
            f"exponential needs n >= 1 and 0 < sigma_min < sigma_max; got {n}, {sigma_min}, {sigma_max}"
        )
    sigmas = torch.linspace(math.log(sigma_max), math.log(sigma_min), n, dtype=torch.float64).exp()
    sigmas[0] = sigma_max
    return torch.cat([sigmas, torch.zeros(1, dtype=torch.float64)])
