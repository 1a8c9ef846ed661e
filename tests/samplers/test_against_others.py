"""Oracle: k_diffusion.sampling in float64, given the same levels and noises."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import scipy.integrate
import torch
from torch import Tensor

from minisd.samplers.names import SAMPLERS, solver
from minisd.samplers.schedule import karras_sigmas
from tests.samplers import kdiffusion
from tests.samplers.test_schedule import float64

K = kdiffusion.load()
K.__dict__["integrate"] = scipy.integrate  # of LMS; the loader leaves scipy out
SHAPE = (2, 4, 3, 5)


def nonlinear(x: Tensor, sigma: float | Tensor) -> Tensor:
    """A smooth denoiser with no closed form."""
    s = float(sigma.flatten()[0]) if isinstance(sigma, Tensor) else sigma
    return torch.tanh(x / (1 + s)) + 0.1 * torch.sin(3 * x / (1 + s**2) ** 0.5)


def start(sigma: float) -> Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(99), dtype=torch.float64) * sigma


class Draws:
    """One generator's normals, the same for everyone who makes one."""

    def __init__(self, shape: tuple[int, ...] = SHAPE) -> None:
        self.shape = shape
        self.generator = torch.Generator().manual_seed(5)

    def __call__(self, sigma: float | Tensor, sigma_next: float | Tensor) -> Tensor:
        return torch.randn(self.shape, generator=self.generator, dtype=torch.float64)


def open_levels(n: int) -> Tensor:
    return karras_sigmas(n + 1, 0.03, 14.6)[:-1]


SAME: list[tuple[str, dict[str, float], dict[str, object]]] = [
    ("euler", {"s_churn": 8.0, "s_tmin": 0.05, "s_tmax": 10.0, "s_noise": 0.99}, {}),
    ("heun", {"s_churn": 8.0, "s_noise": 1.01}, {}),
    ("dpm_2", {}, {}),
    ("dpm_2", {"s_churn": 3.0, "s_tmin": 0.5}, {}),
    ("dpm_2_ancestral", {"eta": 1.0}, {}),
    ("dpm_2_ancestral", {"eta": 0.6, "s_noise": 0.9}, {}),
    ("lms", {}, {}),
    ("lms", {"order": 2}, {}),
    ("dpmpp_2s_ancestral", {"eta": 1.0}, {}),
    ("dpmpp_2s_ancestral", {"eta": 0.6, "s_noise": 0.9}, {}),
    ("dpmpp_sde", {"eta": 1.0}, {}),
    ("dpmpp_sde", {"eta": 0.5, "s_noise": 0.9, "r": 0.4}, {}),
    ("dpmpp_2m_sde", {"eta": 1.0}, {"solver_type": "midpoint"}),
    ("dpmpp_2m_sde", {"eta": 0.5, "s_noise": 0.9}, {"solver_type": "midpoint"}),
    ("dpmpp_2m_sde_heun", {"eta": 1.0}, {"solver_type": "heun"}),
    ("dpmpp_3m_sde", {"eta": 1.0}, {}),
    ("dpmpp_3m_sde", {"eta": 0.5, "s_noise": 0.9}, {}),
]


CRASH = ("dpmpp_2m_sde", "dpmpp_2m_sde_heun", "dpmpp_3m_sde")  # theirs, on one step into 0: h is unbound


@pytest.mark.parametrize("steps", [1, 2, 3, 12])
@pytest.mark.parametrize("name,options,extra", SAME)
def test_as_k_diffusion(
    name: str,
    options: dict[str, float],
    extra: dict[str, object],
    steps: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Oracle: k_diffusion.sampling with the same noises, with and without the final 0."""
    their_name = name.removesuffix("_heun")
    if SAMPLERS[name].noise != "none":
        extra = {**extra, "noise_sampler": Draws()}
    # churn draws by randn_like there
    draws = Draws()
    monkeypatch.setattr(K.torch, "randn_like", lambda x: draws(0.0, 0.0))
    for sigmas in (karras_sigmas(steps, 0.03, 14.6), open_levels(steps)):
        if steps == 1 and name in CRASH and sigmas[-1] == 0:
            continue
        if extra.get("noise_sampler") is not None:
            extra["noise_sampler"] = Draws()
        draws = Draws()
        sample = getattr(K, f"sample_{their_name}")
        theirs = sample(nonlinear, start(14.6), sigmas, disable=True, **options, **extra)
        churn = float(options.get("s_churn", 0.0)) > 0
        noise: Callable[..., Tensor] = Draws()
        if churn:  # they draw each step, also where no churn is due
            noise = steps_noise(sigmas, options)
        ours = solver(name)(nonlinear, start(14.6), sigmas, noise=noise, **options)
        assert (ours - theirs).abs().max() <= 1e-10


def steps_noise(sigmas: Tensor, options: dict[str, float]) -> Callable[[float, float], Tensor]:
    """The draw that belongs to each step, by its level."""
    draws = Draws()
    drawn = {float(s): draws(0.0, 0.0) for s in sigmas[:-1]}
    return lambda sigma, sigma_next: drawn[sigma]


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 5, 6, 20])
@pytest.mark.parametrize("eta", [0.0, 0.7])
def test_dpm_fast_as_k_diffusion(steps: int, eta: float) -> None:
    """Oracle: k_diffusion.sampling in default dtype float64: this many calls between the same ends."""
    with float64():
        theirs = K.sample_dpm_fast(
            nonlinear, start(14.6), 0.03, 14.6, steps, disable=True, eta=eta, noise_sampler=Draws()
        )
    ours = solver("dpm_fast")(nonlinear, start(14.6), open_levels(steps), noise=Draws(), eta=eta)
    assert (ours - theirs).abs().max() <= 1e-10


@pytest.mark.parametrize("options", [{}, {"rtol": 1e-3, "atol": 1e-4}, {"eta": 0.5, "s_noise": 0.9}])
def test_dpm_adaptive_as_k_diffusion(options: dict[str, float]) -> None:
    """Oracle: k_diffusion.sampling in default dtype float64, one image at a time as here."""
    shape = (1, *SHAPE[1:])
    x = start(14.6)[:1]
    with float64():
        theirs = K.sample_dpm_adaptive(
            nonlinear, x, 0.03, 14.6, disable=True, noise_sampler=Draws(shape), **options
        )
    # theirs draws once per accepted step, like ours
    ours = solver("dpm_adaptive")(nonlinear, x, open_levels(9), noise=Draws(shape), **options)
    assert (ours - theirs).abs().max() <= 1e-10
