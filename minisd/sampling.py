"""From noise to latents: the noise levels of a request, its random numbers, and the solver's run.

Everything random is a function of the request's seeds: draw 0 is the first noise (`first_noise.py`), draws 1,
2, ... are those of the steps, and Brownian noise is a path of its own.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from minisd.config import ModelConfig
from minisd.denoiser import Denoiser
from minisd.errors import NumericalError, RequestError
from minisd.first_noise import Shape, first_noise
from minisd.request import Request
from minisd.samplers.ahead import Ahead, queries
from minisd.samplers.brownian import brownian_noise
from minisd.samplers.names import Sampler, find_sampler, solver
from minisd.samplers.noise import batch_normal
from minisd.samplers.ramps import RAMPS, custom_sigmas, without_next_to_last
from minisd.samplers.schedule import SigmaTable, alphas_cumprod, table_sigmas
from minisd.samplers.step import OnStep, Step
from minisd.trail import Trail

if TYPE_CHECKING:
    from minisd.relay import Relay
    from minisd.start import Start

MAKERS = 4  # threads that make a batch's noise
EDM_RANGES = {"edm_eps": (0.002, 80.0), "edm_v": (0.002, 120.0)}  # published for Playground v2.5 and CosXL
# ends that a request may set and that these schedules would not look at
UNUSED_ENDS = {
    "custom": ("sigma_min", "sigma_max"),
    "align_your_steps": ("sigma_min", "sigma_max"),
    "linear_quadratic": ("sigma_min",),
}


def sigma_table(config: ModelConfig, request: Request) -> SigmaTable:
    """The model's training noise levels, with the request's forks for what lies between them."""
    if config.prediction in EDM_RANGES:
        return SigmaTable.edm(*EDM_RANGES[config.prediction])
    s = config.schedule
    alphas = alphas_cumprod(
        s.num_train_timesteps,
        s.beta_start,
        s.beta_end,
        s.beta_schedule,
        zero_terminal_snr=config.zero_terminal_snr,
    )
    forks = request.forks
    return SigmaTable.from_alphas(alphas, interpolation=forks.interpolation, quantised=forks.quantised)


def schedule_of(request: Request) -> str:
    """The schedule's name, decided: "auto" is the sampler's own."""
    if request.sigmas is not None:
        return "custom"
    return find_sampler(request.sampler).schedule if request.schedule == "auto" else request.schedule


def run_sigmas(table: SigmaTable, request: Request, schedule: str, family: str) -> Tensor:
    """The noise levels this request visits, float64 [steps + 1], falling. Raises RequestError for what cannot
    be."""
    sampler, forks = find_sampler(request.sampler), request.forks
    discard = forks.discard == "always" or (forks.discard == "sampler" and sampler.discard)
    steps = request.steps + 1 if discard else request.steps
    first = request.sampler == "ddim" and forks.ddim_end == "first"
    for name in UNUSED_ENDS.get(schedule, ()):
        if getattr(request, name) is not None:
            raise RequestError(f"{name} has no part in the schedule {schedule!r}; leave it out", field=name)
    levels = ranged(table, request)
    try:
        if request.sigmas is not None:
            return custom_sigmas(request.sigmas)
        if schedule == "normal":
            final = levels.sigma_min if first else 0.0
            sigmas = table_sigmas(
                steps, levels, spacing=forks.spacing, offset=forks.steps_offset, final=final
            )
        else:
            sigmas = RAMPS[schedule](steps, levels, family)
    except ValueError as error:
        raise RequestError(str(error), field="sigmas" if request.sigmas is not None else "steps") from error
    if discard:
        sigmas = without_next_to_last(sigmas)
    # a level equal to the end already reached is no step
    keep = torch.cat([sigmas[:-1] > sigmas[-1], torch.ones(1, dtype=torch.bool)])
    return sigmas[keep] if first else sigmas


def ranged(table: SigmaTable, request: Request) -> SigmaTable:
    """The table with the ends that the request sets: what schedules between two ends then span."""
    low, high = request.sigma_min, request.sigma_max
    if low is None and high is None:
        return table
    low, high = low or table.sigma_min, high or table.sigma_max
    if not low < high:
        raise RequestError(f"sigma_min {low:g} must lie below sigma_max {high:g}", field="sigma_min")
    steps = torch.linspace(table.timestep(low), table.timestep(high), len(table.sigmas), dtype=torch.float64)
    levels = table.sigma(steps)
    levels[0], levels[-1] = low, high  # also where they lie beyond the trained ones
    return SigmaTable(levels, table.interpolation, continuous=table.continuous)


def step_noise(
    request: Request,
    sampler: Sampler,
    sigmas: Tensor,
    shape: Shape,
    like: Tensor,
    options: dict[str, object],
    taken: int = 1,
) -> Ahead:
    """What the solver draws on the way, on like's device and dtype; row i is a function of its image's seed
    alone, of which `taken` draws were taken before. Made ahead by other threads: to be used in a `with`."""
    delta = request.eta_seed_delta
    seeds = request.seeds()
    if request.variation_strength > 0:
        seeds = [seeds[0]] * request.count
    seeds = [(seed + delta) % 2**64 for seed in seeds]
    first = 0 if delta else taken  # another seed begins its own stream
    expected = queries(sampler.name, sigmas, options)
    size = math.prod(shape) * len(seeds) * like.element_size()
    makers = min(MAKERS, len(seeds), os.cpu_count() or 1)  # more than images would wait for each other
    if sampler.noise == "brownian":
        positive = sigmas[sigmas > 0]
        here = torch.empty(0, dtype=like.dtype)
        path = brownian_noise(seeds, shape, float(positive.min()), float(positive.max()), here)
        walk = lambda number, sigma, sigma_next: carried(path(sigma, sigma_next), like)  # noqa: E731
        return Ahead(walk, expected, size=size, makers=makers)

    def draw(number: int, sigma: float, sigma_next: float) -> Tensor:
        return carried(batch_normal(request.forks.rng, seeds, first + number, shape), like)

    return Ahead(draw, expected, size=size, makers=makers)


def carried(drawn: Tensor, like: Tensor) -> Tensor:
    """Noise made on the CPU, on like's device and dtype; to CUDA from pinned memory, so that nobody waits for
    what the device does meanwhile."""
    drawn = drawn.to(like.dtype)
    if like.is_cuda:
        return drawn.pin_memory().to(like.device, non_blocking=True)
    return drawn.to(like.device)


def solver_options(request: Request, sampler: Sampler, table: SigmaTable) -> dict[str, object]:
    """The keyword arguments of the solver that the request decides."""
    options: dict[str, object] = {}
    if sampler.eta is not None:
        options["eta"] = sampler.eta if request.eta is None else request.eta
    if "s_churn" in sampler.takes:
        options |= {"s_churn": request.s_churn, "s_tmin": request.s_tmin}
        if request.s_tmax is not None:
            options["s_tmax"] = request.s_tmax
    if "s_noise" in sampler.takes:
        options["s_noise"] = request.s_noise
    if "table" in sampler.takes:
        options["table"] = table
    return options


def sample(
    denoiser: Denoiser | Relay,
    request: Request,
    start: Start,
    shape: Shape,
    device: torch.device,
    on_step: OnStep,
    trail: Trail | None = None,
) -> Tensor:
    """From noise, or a picture's latents and noise, to latents, b c h w on `device`: float32, or the
    network's dtype where that is wider. `trail` notes what is passed through.

    Raises NumericalError naming the first step after which a value is not finite.
    """
    sampler, sigmas = find_sampler(request.sampler), start.sigmas
    trail = trail or Trail()
    if len(sigmas) == 1 and start.latents is not None:  # a strength of no step
        trail.start(start.latents, 0.0)
        return start.latents
    exact = torch.promote_types(denoiser.dtype, torch.float32)
    begin = float(sigmas[0])
    noise = first_noise(request, shape, start.first).to(device, exact)
    if start.x is not None:
        x = start.x.to(exact)
    elif start.latents is not None and not start.pure:
        x = start.latents.to(exact) + noise * begin
    else:
        x = noise * (begin if request.forks.initial_noise == "sigma" else (1 + begin**2) ** 0.5)
    sums: list[Tensor] = []  # one value that is not finite leaves no sum that is
    passed, dtype, here = trail.step, denoiser.dtype, device.type == "cpu"

    def watched(step: Step) -> None:
        sums.append(step.x.sum())
        if here and not math.isfinite(sums[-1]):
            check_finite(sums, dtype)
        passed(step)
        on_step(step)

    trail.start(x, begin)
    denoise: Callable[..., object] = (
        trail.through(start.held(denoiser.denoise_both()))
        if sampler.both
        else trail.through(start.held(denoiser.denoise()))
    )
    options = solver_options(request, sampler, denoiser.table)
    with step_noise(request, sampler, sigmas, shape, x, options, start.taken) as draws:
        x = solver(request.sampler)(denoise, x, sigmas, noise=draws, on_step=watched, **options)
    if not here:  # asked once at the end: asking each step would make the host wait for the device
        check_finite(sums, dtype)
    if start.latents is not None and start.drawn is not None:
        x = torch.where(start.drawn > 0, x, start.latents.to(x))  # a last level above 0 leaves its noise
    return x / (1 + float(sigmas[-1]) ** 2) ** 0.5  # unit variance, where the last level is not 0


def check_finite(sums: list[Tensor], dtype: torch.dtype) -> None:
    """Raises NumericalError for the first step whose latents have no finite sum."""
    good = torch.stack(sums).isfinite().cpu()
    if not good.all():
        step = int(good.int().argmin()) + 1
        raise NumericalError(f"the latents are not finite after step {step} in {dtype}; try dtype float32")
