"""Oracle: Gaussian data with its exact solution; k-diffusion and diffusers in float64 with the same noise."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from diffusers import DDIMScheduler
from torch import Tensor

from minisd.samplers.names import SAMPLERS, solver
from minisd.samplers.schedule import SigmaTable, alphas_cumprod, karras_sigmas, table_sigmas
from minisd.samplers.step import Step
from tests.samplers import gaussian, kdiffusion

K = kdiffusion.load()
STOCHASTIC = ("euler_ancestral", "ddim")
CORE = ("euler", "euler_ancestral", "heun", "ddim", "dpmpp_2m")
ERROR_AT_20 = {"euler": 8.1e-2, "euler_ancestral": 8.1e-2, "ddim": 8.1e-2, "heun": 1.3e-2, "dpmpp_2m": 1.3e-2}


def deterministic(name: str) -> dict[str, float]:
    return {"eta": 0.0} if name in STOCHASTIC else {}


def nonlinear(x: Tensor, sigma: float) -> Tensor:
    """A smooth denoiser with no closed form, for comparing implementations."""
    s = float(sigma.flatten()[0]) if isinstance(sigma, Tensor) else sigma
    return torch.tanh(x / (1 + s)) + 0.1 * torch.sin(3 * x / (1 + s**2) ** 0.5)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Noises:
    """The same sequence of noises for both implementations."""

    def __init__(self, shape: torch.Size) -> None:
        self.shape, self.count = shape, 0

    def __call__(self, sigma: float | Tensor, sigma_next: float | Tensor) -> Tensor:
        self.count += 1
        return normal(*self.shape, seed=self.count)


def error(name: str, n: int) -> float:
    """Largest difference from the exact solution after n steps, without the final 0."""
    sigmas, x = gaussian.open_karras(n), gaussian.starts()
    out = solver(name)(gaussian.denoise, x, sigmas, **deterministic(name))
    return float((out - gaussian.solution(x, float(sigmas[0]), float(sigmas[-1]))).abs().max())


@pytest.mark.parametrize("name", CORE)
def test_order_of_convergence(name: str) -> None:
    """Oracle: the exact solution: error ~ N^-order, fitted over N = 40, 80, 160; the constant at N = 20."""
    errors = [error(name, n) for n in (40, 80, 160)]
    fitted = math.log2(errors[0] / errors[2]) / 2
    assert abs(fitted - SAMPLERS[name].order) < 0.15
    assert error(name, 20) == pytest.approx(ERROR_AT_20[name], rel=0.10)


@pytest.mark.parametrize("name", CORE)
def test_the_last_step_into_zero_is_the_denoised_picture(name: str) -> None:
    """Oracle: from the exact x at sigma_min, one step to 0 leaves 1 - s / sqrt(s^2 + sigma_min^2)."""
    low = gaussian.SIGMA_MIN
    clean = gaussian.starts() / 10
    x = gaussian.solution(clean, 0.0, low)
    sigmas = torch.tensor([low, 0.0], dtype=torch.float64)
    out = solver(name)(gaussian.denoise, x, sigmas, **deterministic(name))
    plateau = 1 - gaussian.STD / math.hypot(gaussian.STD, low)
    assert plateau == pytest.approx(1.7009e-3, rel=1e-4)
    assert ((clean - out) - plateau * (clean - gaussian.MEAN)).abs().max() < 1e-14
    # a whole run ends there too, and claims no more
    begin = gaussian.starts()
    sigmas = karras_sigmas(160, low, gaussian.SIGMA_MAX)
    exact = gaussian.solution(begin, gaussian.SIGMA_MAX, 0.0)
    out = solver(name)(gaussian.denoise, begin, sigmas, **deterministic(name))
    left = ((exact - out) / (exact - gaussian.MEAN))[[0, 8]]
    if SAMPLERS[name].order >= 2:
        assert left.flatten().tolist() == pytest.approx([plateau] * 2, rel=0.2)
    else:
        assert left.abs().max() > 2 * plateau  # order 1 has not converged to it


@pytest.mark.parametrize("name", CORE)
@pytest.mark.parametrize("sigma_end", [0.0, 3.0])
def test_one_step(name: str, sigma_end: float) -> None:
    """Oracle: into 0 the denoised picture, bit for bit; elsewhere not far from the exact solution."""
    x = normal(2, 4, 3, 5) * 10
    sigmas = torch.tensor([10.0, sigma_end], dtype=torch.float64)
    out = solver(name)(gaussian.denoise, x, sigmas, **deterministic(name))
    if sigma_end == 0.0:
        assert torch.equal(out, gaussian.denoise(x, 10.0))
    else:
        assert (out - gaussian.solution(x, 10.0, sigma_end)).abs().max() < 0.5 * x.abs().max()


@pytest.mark.parametrize("name", CORE)
@pytest.mark.parametrize("final", [True, False])
def test_number_of_calls(name: str, final: bool) -> None:
    """Oracle: the table of samplers: `calls` per step, one into 0."""
    calls = 0

    def counted(x: Tensor, sigma: float) -> Tensor:
        nonlocal calls
        calls += 1
        assert type(sigma) is float and sigma > 0
        return gaussian.denoise(x, sigma)

    sigmas = karras_sigmas(8, 0.03, 14.6) if final else gaussian.open_karras(8)
    solver(name)(counted, gaussian.starts(), sigmas, noise=Noises(gaussian.starts().shape))
    per = SAMPLERS[name].calls
    assert calls == (7 * per + 1 if final else 8 * per)


@pytest.mark.parametrize("name", CORE)
def test_callbacks_hear_of_every_step_and_change_nothing(name: str) -> None:
    """Oracle: equality with the run that nobody listens to; the levels of the schedule."""
    sigmas, x = karras_sigmas(6, 0.03, 14.6), normal(1, 4, 4, 4) * 14.6
    before, heard = x.clone(), list[Step]()
    silent = solver(name)(nonlinear, x, sigmas, noise=Noises(x.shape))
    loud = solver(name)(nonlinear, x, sigmas, noise=Noises(x.shape), on_step=heard.append)
    assert torch.equal(silent, loud) and torch.equal(x, before)
    assert [(s.index, s.sigma, s.sigma_next) for s in heard] == [
        (i, float(sigmas[i]), float(sigmas[i + 1])) for i in range(6)
    ]
    assert torch.equal(heard[-1].x, loud)
    assert torch.equal(heard[0].denoised, nonlinear(x, float(sigmas[0])))


@pytest.mark.parametrize("name", ["euler_ancestral", "ddim"])
def test_eta_zero_is_euler_bit_for_bit(name: str) -> None:
    """Oracle: equality, and no noise drawn."""
    sigmas, x = karras_sigmas(9, 0.03, 14.6), normal(2, 4, 4, 4) * 14.6
    noises = Noises(x.shape)
    out = solver(name)(nonlinear, x, sigmas, noise=noises, eta=0.0)
    assert torch.equal(out, solver("euler")(nonlinear, x, sigmas))
    assert noises.count == 0


def test_ddim_of_eta_one_is_ancestral() -> None:
    """Oracle: equality of two names of one process (Song et al. 2021, section 4.1)."""
    sigmas, x = karras_sigmas(9, 0.03, 14.6), normal(1, 4, 4, 4) * 14.6
    runs = [
        solver(n)(nonlinear, x, sigmas, noise=Noises(x.shape), eta=1.0) for n in ("ddim", "euler_ancestral")
    ]
    assert torch.equal(*runs)


@pytest.mark.parametrize("steps", [1, 2, 7, 25])
@pytest.mark.parametrize("name", ["euler", "heun", "dpmpp_2m"])
def test_as_k_diffusion(name: str, steps: int) -> None:
    """Oracle: k_diffusion.sampling in float64, with the final 0."""
    sigmas, x = karras_sigmas(steps, 0.03, 14.6), normal(2, 4, 5, 3) * 14.6
    theirs = getattr(K, f"sample_{name}")(nonlinear, x, sigmas, disable=True)
    assert (solver(name)(nonlinear, x, sigmas) - theirs).abs().max() <= 1e-10


@pytest.mark.parametrize("eta,s_noise", [(1.0, 1.0), (0.5, 1.0), (1.0, 0.9), (0.0, 1.0)])
def test_euler_ancestral_as_k_diffusion(eta: float, s_noise: float) -> None:
    """Oracle: k_diffusion.sampling in float64 with the same noises."""
    sigmas, x = karras_sigmas(12, 0.03, 14.6), normal(2, 4, 5, 3) * 14.6
    theirs = K.sample_euler_ancestral(
        nonlinear, x, sigmas, disable=True, eta=eta, s_noise=s_noise, noise_sampler=Noises(x.shape)
    )
    if eta == 0.0:  # they draw and multiply by 0
        ours = solver("euler_ancestral")(nonlinear, x, sigmas, eta=eta)
    else:
        noises = Noises(x.shape)
        ours = solver("euler_ancestral")(nonlinear, x, sigmas, eta=eta, s_noise=s_noise, noise=noises)
    assert (ours - theirs).abs().max() <= 1e-10


@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("steps,end", [(10, "first"), (20, "zero"), (1, "first"), (1, "zero")])
def test_ddim_as_diffusers(eta: float, steps: int, end: str) -> None:
    """Oracle: diffusers' DDIMScheduler given our float64 table, scaled latents, the same noises."""
    alphas = alphas_cumprod()
    scheduler = DDIMScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        clip_sample=False,
        set_alpha_to_one=end == "zero",
        steps_offset=1,
    )
    assert (scheduler.alphas_cumprod - alphas).abs().max() < 1e-6  # theirs is float32
    scheduler.alphas_cumprod = alphas
    scheduler.final_alpha_cumprod = torch.tensor(1.0, dtype=torch.float64) if end == "zero" else alphas[0]
    scheduler.set_timesteps(steps)
    table = SigmaTable.from_alphas(alphas)
    final = table.sigma_min if end == "first" else 0.0
    sigmas = table_sigmas(steps, table, spacing="leading", offset=1, final=final)
    assert scheduler.timesteps.tolist() == [table.timestep(float(s)) for s in sigmas[:-1]]
    start = normal(1, 4, 4, 4, seed=99)
    noises: Callable[..., Tensor] = Noises(start.shape)
    latent = start
    for t, sigma in zip(scheduler.timesteps, sigmas, strict=False):
        x = latent * float(1 + sigma**2) ** 0.5
        eps = (x - nonlinear(x, float(sigma))) / sigma
        noise = noises(0.0, 0.0) if eta > 0 else None
        latent = scheduler.step(eps, t, latent, eta=eta, variance_noise=noise).prev_sample
    x = start * float(1 + sigmas[0] ** 2) ** 0.5
    out = solver("ddim")(nonlinear, x, sigmas, noise=Noises(start.shape), eta=eta)
    assert (out / (1 + final**2) ** 0.5 - latent).abs().max() <= 1e-10
