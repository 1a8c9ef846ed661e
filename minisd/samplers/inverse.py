"""The way from a picture to the noise that gives it: DDIM and DPM-Solver++(2M) with rising levels.

Song et al. 2021 (arXiv:2010.02502, section 4.3): the probability-flow ODE can be followed upwards. `sigmas`
rise, and may begin at 0, the clean picture: no network knows that level, so there it is told the next one.
What comes out at sigmas[-1], drawn again with the same solver and prompt and these levels reversed, is the
picture up to the solver's error.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from minisd.samplers.ode import sample_dpmpp_2m
from minisd.samplers.step import Denoise, Noise, OnStep, shifted, steps_of, tell


def check_rising(sigmas: Tensor) -> None:
    if len(sigmas) < 2 or float(sigmas[0]) < 0 or not bool((sigmas.diff() > 0).all()):
        raise ValueError("the levels of an inversion rise, from 0 or above; reverse those of a run")


def eps_when_told(denoise: Denoise, x: Tensor, sigma: float, told: float) -> Tensor:
    """The noise that the network sees in x, which lies at level sigma, when it is told another level: x is
    scaled to the variance it has there."""
    there = x * ((1 + told**2) / (1 + sigma**2)) ** 0.5
    return (there - denoise(there, told)) / told


def sample_ddim_inverse(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    *,
    noise: Noise | None = None,
    on_step: OnStep | None = None,
    told: Literal["here", "next"] = "here",
) -> Tensor:
    """DDIM upwards, eta 0: order 1, one call per step.

    told: the level that the network is told at each step: where x is (Euler's method), or where it goes
    ("next", as diffusers' DDIMInverseScheduler has it). Raises ValueError for levels that do not rise.
    """
    check_rising(sigmas)
    for i, sigma, sigma_next in steps_of(sigmas):
        level = sigma_next if told == "next" or sigma == 0 else sigma
        eps = eps_when_told(denoise, x, sigma, level)
        denoised = x - sigma * eps
        x = x + (sigma_next - sigma) * eps
        tell(on_step, i, sigma, sigma_next, x, denoised)
    return x


def sample_dpmpp_2m_inverse(
    denoise: Denoise, x: Tensor, sigmas: Tensor, *, noise: Noise | None = None, on_step: OnStep | None = None
) -> Tensor:
    """DPM-Solver++(2M) upwards: order 2, one call per step; a step from 0 is DDIM's and begins the run anew.
    Raises ValueError for levels that do not rise."""
    check_rising(sigmas)
    if float(sigmas[0]) > 0:
        return sample_dpmpp_2m(denoise, x, sigmas, on_step=on_step)
    x = sample_ddim_inverse(denoise, x, sigmas[:2], on_step=on_step)
    return sample_dpmpp_2m(denoise, x, sigmas[1:], on_step=shifted(on_step, 1))
