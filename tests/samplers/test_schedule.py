"""Oracle: the numbers of the published models, k-diffusion's and diffusers' schedules."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler
from diffusers.schedulers.scheduling_ddim import rescale_zero_terminal_snr
from torch import Tensor

from minisd.samplers.schedule import (
    SigmaTable,
    Spacing,
    alphas_cumprod,
    exponential_sigmas,
    karras_sigmas,
    spaced_timesteps,
    table_sigmas,
)
from tests.samplers import kdiffusion

K = kdiffusion.load()
SD = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
STEPS = [1, 2, 3, 7, 10, 13, 20, 25, 30, 50, 100, 333, 999, 1000]


@contextmanager
def float64() -> Iterator[None]:
    """k-diffusion makes its levels in the default dtype."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def table(**options: object) -> SigmaTable:
    return SigmaTable.from_alphas(alphas_cumprod(), **options)  # type: ignore[arg-type]


def test_the_table_of_stable_diffusion() -> None:
    """Oracle: sigma_min 0.0291675 and sigma_max 14.614642, as float32 implementations print them."""
    assert table().sigma_min == pytest.approx(0.0291675, rel=2e-5)  # 1 - alpha loses four digits in float32
    assert table().sigma_max == pytest.approx(14.614642, rel=1e-6)
    assert len(table().sigmas) == 1000 and (table().sigmas.diff() > 0).all()


@pytest.mark.parametrize("kind", ["scaled_linear", "linear"])
def test_alphas_as_diffusers(kind: str) -> None:
    """Oracle: diffusers' alphas_cumprod, which is float32."""
    theirs = DDIMScheduler(beta_schedule=kind, beta_start=0.0001, beta_end=0.02).alphas_cumprod
    ours = alphas_cumprod(beta_start=0.0001, beta_end=0.02, beta_schedule=kind)  # type: ignore[arg-type]
    assert ours.dtype == torch.float64
    assert ((ours - theirs) / ours).abs().max() < 1e-5


def test_zero_terminal_snr() -> None:
    """Oracle: diffusers' rescale_zero_terminal_snr in float64; only the last value differs, 2^-24 for 0."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    theirs = (1 - rescale_zero_terminal_snr(betas)).cumprod(0)
    ours = alphas_cumprod(zero_terminal_snr=True)
    assert (ours[:-1] - theirs[:-1]).abs().max() < 1e-12
    assert ours[0] == pytest.approx(float(alphas_cumprod()[0]), rel=1e-12)
    assert theirs[-1] == 0 and ours[-1] == 2.0**-24
    assert SigmaTable.from_alphas(ours).sigma_max == pytest.approx(4096, rel=1e-6)


@pytest.mark.parametrize("n", [1, 2, 5, 20, 160])
def test_karras_and_exponential_as_k_diffusion(n: int) -> None:
    """Oracle: k-diffusion in float64; the ends are exact here."""
    with float64():
        karras, exponential = K.get_sigmas_karras(n, 0.03, 14.6), K.get_sigmas_exponential(n, 0.03, 14.6)
    for ours, theirs in (
        (karras_sigmas(n, 0.03, 14.6), karras),
        (exponential_sigmas(n, 0.03, 14.6), exponential),
    ):
        assert ours.dtype == torch.float64 and ours.shape == (n + 1,)
        assert (ours - theirs).abs().max() < 1e-12
        assert ours[0] == 14.6 and ours[-1] == 0.0
        assert (ours.diff() < 0).all()


@pytest.mark.parametrize("make", [karras_sigmas, exponential_sigmas])
@pytest.mark.parametrize("n,low,high", [(0, 0.03, 14.6), (5, 0.0, 14.6), (5, 1.0, 1.0), (5, -1.0, 2.0)])
def test_schedules_that_cannot_be(make: object, n: int, low: float, high: float) -> None:
    """Oracle: the documented ValueError."""
    assert callable(make)
    with pytest.raises(ValueError, match="0 < sigma_min < sigma_max"):
        make(n, low, high)


@pytest.mark.parametrize("n", STEPS[:-1])
@pytest.mark.parametrize("spacing,offset", [("linspace", 0), ("leading", 0), ("leading", 1), ("trailing", 0)])
def test_spacings_as_diffusers_euler(spacing: Spacing, offset: int, n: int) -> None:
    """Oracle: EulerDiscreteScheduler: timesteps, and levels in its float32."""
    scheduler = EulerDiscreteScheduler(timestep_spacing=spacing, steps_offset=offset, **SD)  # type: ignore[arg-type]
    scheduler.set_timesteps(n)
    ours = spaced_timesteps(n, spacing, offset=offset)
    if spacing == "linspace" and n == 1:
        # numpy's linspace of one point is its beginning, 0: a picture from no noise. Ours is the end
        assert scheduler.timesteps.tolist() == [0.0] and ours.tolist() == [999.0]
        return
    assert np.allclose(ours.numpy(), scheduler.timesteps.numpy(), rtol=1e-6)
    sigmas = table_sigmas(n, table(interpolation="linear"), spacing=spacing, offset=offset)
    assert np.allclose(sigmas.numpy(), scheduler.sigmas.numpy(), rtol=2e-5)


@pytest.mark.parametrize("n", STEPS[:-1])
@pytest.mark.parametrize("spacing", ["leading", "trailing"])
def test_spacings_as_diffusers_ddim(spacing: Spacing, n: int) -> None:
    """Oracle: DDIMScheduler's whole timesteps."""
    scheduler = DDIMScheduler(timestep_spacing=spacing, steps_offset=1, **SD)  # type: ignore[arg-type]
    scheduler.set_timesteps(n)
    assert spaced_timesteps(n, spacing, offset=1).tolist() == scheduler.timesteps.tolist()


def test_spacing_of_sgm() -> None:
    """Oracle: LegacyDDPMDiscretization written out for 10 of 1000 steps, and one step from the end."""
    assert spaced_timesteps(10, "sgm").tolist() == [999, 899, 799, 699, 599, 499, 399, 299, 199, 99]
    assert spaced_timesteps(1, "sgm").tolist() == [999]


def generated(n: int) -> list[int]:
    """sgm's generate_roughly_equally_spaced_steps: linspace from the last, without the end, cut to whole."""
    return np.linspace(999, 0, n, endpoint=False).astype(int)[::-1].tolist()


@pytest.mark.parametrize("n", STEPS)
def test_spacing_of_sgm_at_any_length(n: int) -> None:
    """Oracle: the same formula by numpy."""
    assert spaced_timesteps(n, "sgm").flip(0).tolist() == generated(n)


@pytest.mark.parametrize("n", [0, -1, 1001])
@pytest.mark.parametrize("spacing", ["linspace", "leading", "trailing", "sgm"])
def test_more_steps_than_levels(spacing: Spacing, n: int) -> None:
    """Oracle: the documented ValueError."""
    with pytest.raises(ValueError, match="1 to 1000"):
        spaced_timesteps(n, spacing)


@pytest.mark.parametrize("n,offset", [(1000, 1), (500, 2), (20, 50)])
def test_offsets_that_lead_beyond_the_table(n: int, offset: int) -> None:
    """Oracle: the documented ValueError: clamped, two steps would share a level; one less fits."""
    with pytest.raises(ValueError, match="ends at 999: take fewer steps or a smaller offset"):
        spaced_timesteps(n, "leading", offset=offset)
    assert spaced_timesteps(n, "leading", offset=offset - 1)[0] <= 999


@pytest.mark.parametrize("interpolation", ["log", "linear"])
def test_timestep_is_the_inverse_of_sigma(interpolation: str) -> None:
    """Oracle: t itself: exactly at every trained level, to rounding between them, clamped outside."""
    levels = table(interpolation=interpolation)
    whole = torch.arange(1000.0, dtype=torch.float64)
    assert [levels.timestep(float(s)) for s in levels.sigma(whole)] == whole.tolist()
    assert torch.equal(levels.sigma(whole), levels.sigmas)
    between = torch.rand(200, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 999
    back = [levels.timestep(float(s)) for s in levels.sigma(between)]
    assert np.allclose(back, between.numpy(), atol=2e-6, rtol=0)
    assert levels.timestep(0.0) == 0.0 and levels.timestep(1e-9) == 0.0 and levels.timestep(1e9) == 999.0
    assert levels.sigma(torch.tensor([-5.0, 5000.0])).tolist() == [levels.sigma_min, levels.sigma_max]


def test_interpolation_between_levels() -> None:
    """Oracle: the geometric and the arithmetic mean of two neighbours."""
    a, b = table().sigmas[500], table().sigmas[501]
    half = torch.tensor([500.5], dtype=torch.float64)
    assert float(table().sigma(half)) == pytest.approx(float((a * b).sqrt()), rel=1e-14)
    assert float(table(interpolation="linear").sigma(half)) == pytest.approx(float((a + b) / 2), rel=1e-14)


def test_quantised_timesteps_are_whole() -> None:
    """Oracle: the nearest trained level in t."""
    levels = table(quantised=True)
    for t, nearest in ((500.4, 500.0), (500.6, 501.0), (0.2, 0.0)):
        sigma: Tensor = levels.sigma(torch.tensor([t], dtype=torch.float64))
        assert levels.timestep(float(sigma)) == nearest
