"""Oracle: diffusers' schedulers in float64, given the same levels and noises."""

# pyright: reportPrivateImportUsage=false
# (diffusers exports its classes lazily, which pyright takes for private)

from __future__ import annotations

from typing import Any, Literal

import pytest
import torch
from diffusers import (
    DDIMInverseScheduler,
    DDPMScheduler,
    DEISMultistepScheduler,
    DPMSolverMultistepInverseScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    IPNDMScheduler,
    KDPM2AncestralDiscreteScheduler,
    KDPM2DiscreteScheduler,
    LCMScheduler,
    LMSDiscreteScheduler,
    PNDMScheduler,
    SASolverScheduler,
    TCDScheduler,
    UniPCMultistepScheduler,
)
from diffusers.schedulers import (
    scheduling_dpmsolver_multistep,
    scheduling_dpmsolver_multistep_inverse,
    scheduling_euler_ancestral_discrete,
    scheduling_euler_discrete,
)
from torch import Tensor

from minisd.samplers import ramps
from minisd.samplers.inverse import sample_ddim_inverse, sample_dpmpp_2m_inverse
from minisd.samplers.names import solver
from minisd.samplers.schedule import SigmaTable, alphas_cumprod, karras_sigmas, table_sigmas
from tests.samplers.test_against_others import Draws, nonlinear, open_levels, start

ALPHAS = alphas_cumprod()
TABLE = SigmaTable.from_alphas(ALPHAS)
Scheduler = Any  # diffusers fills its schedulers' attributes outside their types


def through_diffusers(scheduler: Scheduler, sigmas: Tensor, *, scaled: bool, **options: object) -> Tensor:
    """Its loop over our levels, in unit-variance latents (`scaled`) or in x = z + sigma n."""
    steps = len(sigmas) - 1
    scheduler.set_timesteps(steps)
    scheduler.sigmas, scheduler.timesteps = sigmas, torch.arange(float(steps), 0, -1)
    scheduler.is_scale_input_called = True  # it only warns that x is not scaled for the model

    def scale(level: Tensor) -> float:
        return float(1 + level**2) ** 0.5 if scaled else 1.0

    x = start(14.6) / scale(sigmas[0])
    for t, sigma in zip(scheduler.timesteps, sigmas, strict=False):
        full = x * scale(sigma)
        eps = (full - nonlinear(full, float(sigma))) / sigma
        x = scheduler.step(eps, t, x, **options).prev_sample
    return x * scale(sigmas[-1])


class Wide:
    """torch for a scheduler's module, where float32 means float64: some cast to it on the way."""

    float32 = torch.float64

    def __getattr__(self, name: str) -> object:
        return getattr(torch, name)


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_lms_as_diffusers(order: int) -> None:
    """Oracle: LMSDiscreteScheduler, with the final 0."""
    sigmas = karras_sigmas(12, 0.03, 14.6)
    theirs = through_diffusers(LMSDiscreteScheduler(), sigmas, scaled=False, order=order)
    ours = solver("lms")(nonlinear, start(14.6), sigmas, order=order)
    assert (ours - theirs).abs().max() <= 1e-10


def test_euler_ancestral_as_diffusers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Oracle: EulerAncestralDiscreteScheduler with its generator's noise, not cast to float32."""
    monkeypatch.setattr(scheduling_euler_ancestral_discrete, "torch", Wide())
    draws, sigmas = Draws(), karras_sigmas(12, 0.03, 14.6)
    scheduler: Scheduler = EulerAncestralDiscreteScheduler()
    theirs = through_diffusers(scheduler, sigmas, scaled=False, generator=draws.generator)
    ours = solver("euler_ancestral")(nonlinear, start(14.6), sigmas, noise=Draws())
    assert (ours - theirs).abs().max() <= 1e-10


@pytest.mark.parametrize("final", [True, False])
def test_euler_as_diffusers(final: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Oracle: EulerDiscreteScheduler, not cast to float32."""
    monkeypatch.setattr(scheduling_euler_discrete, "torch", Wide())
    sigmas = karras_sigmas(12, 0.03, 14.6) if final else open_levels(12)
    theirs = through_diffusers(EulerDiscreteScheduler(), sigmas, scaled=False)
    assert (solver("euler")(nonlinear, start(14.6), sigmas) - theirs).abs().max() <= 1e-10


def doubled(levels: Tensor) -> Tensor:
    """Levels as the schedulers hold them that are stepped twice for one step of ours."""
    return torch.cat([levels[:1], levels[1:].repeat_interleave(2), levels[-1:]])


def in_two_stages(scheduler: Scheduler, calls: Tensor, **options: object) -> Tensor:
    """A scheduler stepped once for each of these levels, at which its samples lie."""
    scheduler.timesteps, scheduler.is_scale_input_called = torch.arange(float(len(calls)), 0, -1), True
    x = start(14.6)
    for t, sigma in zip(scheduler.timesteps, calls, strict=True):
        eps = (x - nonlinear(x, float(sigma))) / sigma
        x = scheduler.step(eps, t, x, **options).prev_sample
    return x


def test_heun_as_diffusers() -> None:
    """Oracle: HeunDiscreteScheduler, which is stepped once for each call; the last call leads into 0."""
    sigmas = karras_sigmas(12, 0.03, 14.6)
    scheduler: Scheduler = HeunDiscreteScheduler()
    scheduler.set_timesteps(12)
    assert len(scheduler.timesteps) == 23
    scheduler.sigmas = torch.cat([sigmas[:1], sigmas[1:-1].repeat_interleave(2), sigmas[-1:]])
    theirs = in_two_stages(scheduler, scheduler.sigmas[:23])
    assert (solver("heun")(nonlinear, start(14.6), sigmas) - theirs).abs().max() <= 1e-10


def test_dpm_2_as_diffusers() -> None:
    """Oracle: KDPM2DiscreteScheduler."""
    sigmas = karras_sigmas(12, 0.03, 14.6)
    middle = (sigmas.log() / 2 + sigmas.roll(1).log() / 2).exp()  # of each level and the one before it
    scheduler: Scheduler = KDPM2DiscreteScheduler()
    scheduler.set_timesteps(12)
    assert len(scheduler.timesteps) == 23
    scheduler.sigmas, scheduler.sigmas_interpol = doubled(sigmas), doubled(middle)
    calls = torch.stack([sigmas[:-1], middle[1:]], dim=1).flatten()[:23]
    theirs = in_two_stages(scheduler, calls)
    assert (solver("dpm_2")(nonlinear, start(14.6), sigmas) - theirs).abs().max() <= 1e-10


def test_dpm_2_ancestral_as_diffusers() -> None:
    """Oracle: KDPM2AncestralDiscreteScheduler with its generator's noise."""
    sigmas = karras_sigmas(12, 0.03, 14.6)
    after = torch.cat([sigmas[1:], sigmas[-1:]])
    up = torch.nan_to_num((after**2 * (sigmas**2 - after**2) / sigmas**2) ** 0.5)
    down = (after**2 - up**2) ** 0.5
    middle = (sigmas.log() / 2 + down.log() / 2).exp()
    middle[-2:] = 0.0
    scheduler: Scheduler = KDPM2AncestralDiscreteScheduler()
    scheduler.set_timesteps(12)
    scheduler.sigmas, scheduler.sigmas_interpol = doubled(sigmas), doubled(middle)
    scheduler.sigmas_up, scheduler.sigmas_down = doubled(up), doubled(down)
    calls = torch.stack([sigmas[:-1], middle[:-1]], dim=1).flatten()[:23]
    draws = Draws()
    theirs = in_two_stages(scheduler, calls, generator=draws.generator)
    ours = solver("dpm_2_ancestral")(nonlinear, start(14.6), sigmas, noise=Draws())
    assert (ours - theirs).abs().max() <= 1e-10


def test_ddim_inverse_as_diffusers() -> None:
    """Oracle: DDIMInverseScheduler on our float64 table, from the clean picture."""
    scheduler: Scheduler = DDIMInverseScheduler(clip_sample=False, set_alpha_to_one=True)
    scheduler.alphas_cumprod, scheduler.initial_alpha_cumprod = ALPHAS, torch.tensor(1.0, dtype=torch.float64)
    scheduler.set_timesteps(10)
    levels = TABLE.sigmas[scheduler.timesteps]
    x = start(1.0)
    for t, sigma in zip(scheduler.timesteps, levels, strict=True):
        full = x * (1 + sigma**2) ** 0.5
        eps = (full - nonlinear(full, float(sigma))) / sigma
        x = scheduler.step(eps, t, x).prev_sample
    sigmas = torch.cat([torch.zeros(1, dtype=torch.float64), levels])
    ours = sample_ddim_inverse(nonlinear, start(1.0), sigmas, told="next")
    assert (ours - x * (1 + levels[-1] ** 2) ** 0.5).abs().max() <= 1e-10


def test_dpmpp_2m_inverse_as_diffusers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Oracle: DPMSolverMultistepInverseScheduler of order 2, not cast to float32."""
    monkeypatch.setattr(scheduling_dpmsolver_multistep_inverse, "torch", Wide())
    rising = open_levels(16).flip(0)
    scheduler: Scheduler = DPMSolverMultistepInverseScheduler(solver_order=2, lower_order_final=False)
    scheduler.set_timesteps(16)
    scheduler.sigmas, scheduler.timesteps = rising, torch.arange(16.0)
    x = start(1.0) / float(1 + rising[0] ** 2) ** 0.5
    for t, sigma in zip(scheduler.timesteps, rising, strict=False):
        full = x * float(1 + sigma**2) ** 0.5
        x = scheduler.step((full - nonlinear(full, float(sigma))) / sigma, t, x).prev_sample
    ours = sample_dpmpp_2m_inverse(nonlinear, start(1.0), rising)
    assert (ours - x * float(1 + rising[-1] ** 2) ** 0.5).abs().max() <= 1e-10


@pytest.mark.parametrize("order", [1, 2, 3])
def test_deis_as_diffusers(order: int) -> None:
    """Oracle: DEISMultistepScheduler."""
    scheduler: Scheduler = DEISMultistepScheduler(solver_order=order, lower_order_final=False)
    theirs = through_diffusers(scheduler, open_levels(12), scaled=True)
    ours = solver("deis")(nonlinear, start(14.6), open_levels(12), order=order)
    assert (ours - theirs).abs().max() <= 1e-10


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("variant", ["bh1", "bh2"])
@pytest.mark.parametrize("final", [True, False])
def test_unipc_as_diffusers(order: int, variant: Literal["bh1", "bh2"], final: bool) -> None:
    """Oracle: UniPCMultistepScheduler; its bh1 multiplies infinity by 0 in a final step into 0."""
    if final and variant == "bh1":
        final_variant = UniPCMultistepScheduler(solver_order=order, solver_type="bh1")
        assert through_diffusers(final_variant, karras_sigmas(4, 0.03, 14.6), scaled=True).isnan().any()
        return
    sigmas = karras_sigmas(12, 0.03, 14.6) if final else open_levels(12)
    scheduler: Scheduler = UniPCMultistepScheduler(
        solver_order=order, solver_type=variant, lower_order_final=final
    )
    theirs = through_diffusers(scheduler, sigmas, scaled=True)
    ours = solver("unipc")(nonlinear, start(14.6), sigmas, order=order, variant=variant)
    assert (ours - theirs).abs().max() <= 1e-10


@pytest.mark.parametrize("predictor,corrector", [(1, 1), (1, 2), (2, 2), (2, 1), (3, 2), (3, 3), (3, 4)])
@pytest.mark.parametrize("tau", [0.0, 0.4, 1.0])
def test_sa_solver_as_diffusers(predictor: int, corrector: int, tau: float) -> None:
    """Oracle: SASolverScheduler with the same tau and generator."""
    orders: dict[str, Any] = {"predictor_order": predictor, "corrector_order": corrector}
    scheduler: Scheduler = SASolverScheduler(**orders, tau_func=lambda t: tau, lower_order_final=False)
    draws = Draws()
    theirs = through_diffusers(scheduler, open_levels(12), scaled=True, generator=draws.generator)
    ours = solver("sa_solver")(nonlinear, start(14.6), open_levels(12), noise=Draws(), tau=tau, **orders)
    assert (ours - theirs).abs().max() <= 1e-10


@pytest.mark.parametrize(
    "name,options",
    [
        ("dpmpp_2m", {"solver_type": "midpoint"}),
        ("res_multistep", {"solver_type": "heun"}),
        ("dpmpp_2m_sde", {"solver_type": "midpoint", "algorithm_type": "sde-dpmsolver++"}),
        ("dpmpp_2m_sde_heun", {"solver_type": "heun", "algorithm_type": "sde-dpmsolver++"}),
    ],
)
@pytest.mark.parametrize("final", [True, False])
def test_dpm_solver_as_diffusers(
    name: str, options: dict[str, Any], final: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Oracle: DPMSolverMultistepScheduler of order 2, not cast to float32."""
    monkeypatch.setattr(scheduling_dpmsolver_multistep, "torch", Wide())
    sigmas = karras_sigmas(16, 0.03, 14.6) if final else open_levels(16)
    end = "zero" if final else "sigma_min"
    scheduler: Scheduler = DPMSolverMultistepScheduler(solver_order=2, final_sigmas_type=end, **options)
    draws = Draws()
    theirs = through_diffusers(scheduler, sigmas, scaled=True, generator=draws.generator)
    ours = solver(name)(nonlinear, start(14.6), sigmas, noise=Draws())
    assert (ours - theirs).abs().max() <= 1e-10


def on_the_table(scheduler: Scheduler, sigmas: Tensor, **options: object) -> Tensor:
    """A scheduler that looks its alphas up by timestep, given our float64 table."""
    scheduler.alphas_cumprod = ALPHAS
    x = start(float(sigmas[0])) / float(1 + sigmas[0] ** 2) ** 0.5
    for t in scheduler.timesteps:
        sigma = float(TABLE.sigmas[int(t)])
        full = x * (1 + sigma**2) ** 0.5
        eps = (full - nonlinear(full, sigma)) / sigma
        x = scheduler.step(eps, t, x, **options).prev_sample
    return x * float(1 + sigmas[-1] ** 2) ** 0.5


def levels_of(timesteps: Tensor, final: float) -> Tensor:
    return torch.cat([TABLE.sigmas[timesteps.long()], torch.tensor([final], dtype=torch.float64)])


@pytest.mark.parametrize("steps", [2, 3, 10, 20])
def test_plms_as_diffusers(steps: int) -> None:
    """Oracle: PNDMScheduler without Runge-Kutta steps, as Stable Diffusion 1 was released."""
    scheduler: Scheduler = PNDMScheduler(skip_prk_steps=True, set_alpha_to_one=True)
    scheduler.final_alpha_cumprod = torch.tensor(1.0, dtype=torch.float64)
    scheduler.set_timesteps(steps)
    sigmas = table_sigmas(steps, TABLE, spacing="leading")
    assert len(scheduler.timesteps) == steps + 1  # its first step twice, as ours calls twice
    ours = solver("plms")(nonlinear, start(float(sigmas[0])), sigmas)
    assert (ours - on_the_table(scheduler, sigmas)).abs().max() <= 1e-10


def test_ipndm_as_diffusers() -> None:
    """Oracle: IPNDMScheduler, which takes v, on our levels."""
    sigmas = karras_sigmas(12, 0.03, 14.6)
    scheduler: Scheduler = IPNDMScheduler()
    scheduler.set_timesteps(12)
    scheduler.alphas = (1 + sigmas**2) ** -0.5
    scheduler.betas = sigmas * scheduler.alphas
    x = start(14.6) * scheduler.alphas[0]
    for i, t in enumerate(scheduler.timesteps):
        a, b = scheduler.alphas[i], scheduler.betas[i]
        denoised = nonlinear(x / a, float(sigmas[i]))
        x = scheduler.step(a * (x - a * denoised) / b - b * denoised, t, x).prev_sample
    ours = solver("ipndm")(nonlinear, start(14.6), sigmas)
    assert (ours - x).abs().max() <= 1e-10


@pytest.mark.parametrize("gamma", [0.0, 0.3, 1.0])
def test_tcd_as_diffusers(gamma: float) -> None:
    """Oracle: TCDScheduler, which ends at the first trained level."""
    scheduler: Scheduler = TCDScheduler()
    draws = Draws()
    scheduler.set_timesteps(4)
    sigmas = levels_of(scheduler.timesteps, TABLE.sigma_min)
    theirs = on_the_table(scheduler, sigmas, eta=gamma, generator=draws.generator)
    x = start(float(sigmas[0]))
    ours = solver("tcd")(nonlinear, x, sigmas, table=TABLE, noise=Draws(), gamma=gamma)
    assert (ours - theirs).abs().max() <= 1e-10


def test_lcm_as_diffusers() -> None:
    """Oracle: LCMScheduler with its boundary condition (c_skip) scaled away."""
    scheduler: Scheduler = LCMScheduler(timestep_scaling=1e9)
    draws = Draws()
    scheduler.set_timesteps(4)
    sigmas = ramps.lcm_sigmas(4, TABLE)
    assert torch.equal(sigmas, levels_of(scheduler.timesteps, 0.0))
    theirs = on_the_table(scheduler, sigmas, generator=draws.generator)
    ours = solver("lcm")(nonlinear, start(float(sigmas[0])), sigmas, noise=Draws())
    assert (ours - theirs).abs().max() <= 1e-10


@pytest.mark.parametrize("steps", [1, 10, 50])
def test_ddpm_as_diffusers(steps: int) -> None:
    """Oracle: DDPMScheduler with the small variance."""
    scheduler: Scheduler = DDPMScheduler(clip_sample=False, timestep_spacing="leading")
    draws = Draws()
    scheduler.set_timesteps(steps)
    scheduler.one = torch.tensor(1.0, dtype=torch.float64)
    sigmas = table_sigmas(steps, TABLE, spacing="leading")
    theirs = on_the_table(scheduler, sigmas, generator=draws.generator)
    ours = solver("ddpm")(nonlinear, start(float(sigmas[0])), sigmas, noise=Draws())
    assert (ours - theirs).abs().max() <= 1e-10
