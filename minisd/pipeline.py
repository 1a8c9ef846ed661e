"""One picture, from beginning to end: encode -> noise -> sample -> decode.

`draw` is the only loop; every task is this loop with another start. It changes nothing of the model, so any
number of threads may draw with one model at a time. All randomness comes from the request's seeds.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from PIL import Image
from torch import Tensor

from minisd.errors import Cancelled, NumericalError, RequestError
from minisd.guidance import Guidance, make_denoise
from minisd.images import to_image
from minisd.model import Model
from minisd.models.tiling import tiled
from minisd.request import Request
from minisd.samplers.names import find_sampler, solver
from minisd.samplers.noise import batch_normal
from minisd.samplers.ode import Step
from minisd.samplers.schedule import (
    SigmaTable,
    alphas_cumprod,
    exponential_sigmas,
    karras_sigmas,
    table_sigmas,
)
from minisd.text.conditioning import Conditioning, encode_prompts


class CancelToken(Protocol):
    """Anything that can be asked whether to stop: threading.Event fits."""

    def is_set(self) -> bool: ...


@dataclass(frozen=True)
class Progress:
    """A step is done. `step` counts from 1 to `steps`."""

    step: int
    steps: int
    sigma: float
    seconds: float  # since the request began


@dataclass(frozen=True)
class Preview:
    """What the pictures look like so far; never changes what comes out."""

    step: int
    images: tuple[Image.Image, ...]


@dataclass(frozen=True)
class Drawing:
    """What `draw` gives: pictures, the latents they were decoded from, and what was decided on the way."""

    images: tuple[Image.Image, ...]
    latents: Tensor  # b 4 h w float32 on the CPU, scaled as the UNet sees them
    request: Request  # made whole
    schedule: str
    sigmas: tuple[float, ...]
    tokens: tuple[int, int]  # of the prompt: counted, and of them read
    seconds: dict[str, float]  # per stage


Listener = Callable[[Progress | Preview], None]


@dataclass(frozen=True)
class Listening:
    """Who hears of the steps, and how often with a preview."""

    on_event: Listener | None
    preview_every: int
    begun: float

    def step(self, model: Model, step: Step, *, steps: int) -> None:
        if self.on_event is None:
            return
        done = step.index + 1
        self.on_event(Progress(done, steps, step.sigma, time.perf_counter() - self.begun))
        if self.preview_every and done % self.preview_every == 0 and done < steps:
            self.on_event(Preview(done, preview(model, step.denoised)))


def sigma_table(model: Model, request: Request) -> SigmaTable:
    """The model's training noise levels, with the request's forks for what lies between them."""
    s = model.config.schedule
    alphas = alphas_cumprod(
        s.num_train_timesteps,
        s.beta_start,
        s.beta_end,
        s.beta_schedule,
        zero_terminal_snr=model.config.zero_terminal_snr,
    )
    forks = request.forks
    return SigmaTable.from_alphas(alphas, interpolation=forks.interpolation, quantised=forks.quantised)


def run_sigmas(table: SigmaTable, request: Request, schedule: str) -> Tensor:
    """The noise levels this request visits, float64 [steps + 1], falling."""
    forks = request.forks
    if schedule == "karras":
        return karras_sigmas(request.steps, table.sigma_min, table.sigma_max)
    if schedule == "exponential":
        return exponential_sigmas(request.steps, table.sigma_min, table.sigma_max)
    first = request.sampler == "ddim" and forks.ddim_end == "first"
    try:
        sigmas = table_sigmas(
            request.steps,
            table,
            spacing=forks.spacing,
            offset=forks.steps_offset,
            final=table.sigma_min if first else 0.0,
        )
    except ValueError as error:
        raise RequestError(str(error), field="steps") from error
    # a level equal to the end already reached is no step
    keep = torch.cat([sigmas[:-1] > sigmas[-1], torch.ones(1, dtype=torch.bool)])
    return sigmas[keep] if first else sigmas


def first_noise(normal: Tensor, sigma: float, rule: str) -> Tensor:
    """The x that sampling begins with, at noise level sigma."""
    return normal * (sigma if rule == "sigma" else (1 + sigma**2) ** 0.5)


def draw(
    model: Model,
    request: Request,
    *,
    on_event: Listener | None = None,
    cancel: CancelToken | None = None,
    preview_every: int = 0,
) -> Drawing:
    """Draw a request made whole by `Request.for_model`.

    on_event hears of each step, and with preview_every = k of a preview every k steps. cancel is asked before
    each network call; Cancelled is raised within one call of its being set. Raises NumericalError when a
    latent is not finite.
    """
    begun = time.perf_counter()
    seconds: dict[str, float] = {}

    def check() -> None:
        if cancel is not None and cancel.is_set():
            raise Cancelled("cancelled by its token; the engine is unchanged")

    def lap(stage: str) -> None:
        seconds[stage] = time.perf_counter() - begun - sum(seconds.values())

    with torch.inference_mode():
        check()
        cond, uncond = encode_prompts(model, request)
        lap("encode")

        table = sigma_table(model, request)
        sampler = find_sampler(request.sampler)
        schedule = sampler.schedule if request.schedule == "auto" else request.schedule
        sigmas = run_sigmas(table, request, schedule)
        tell = Listening(on_event, preview_every, begun)
        latents = sample(model, request, table, sigmas, (cond, uncond), check, tell)
        lap("sample")

        images = []
        for (
            latent
        ) in latents:  # one at a time: memory of one picture, and bits that do not depend on the batch
            check()
            images.append(to_image(decode(model, latent[None])[0]))
        lap("decode")
    return Drawing(
        images=tuple(images),
        latents=latents.cpu(),
        request=request,
        schedule=schedule,
        sigmas=tuple(float(s) for s in sigmas),
        tokens=(cond.tokens, cond.used),
        seconds=seconds,
    )


def sample(
    model: Model,
    request: Request,
    table: SigmaTable,
    sigmas: Tensor,
    prompts: tuple[Conditioning, Conditioning],
    check: Callable[[], None],
    listening: Listening,
) -> Tensor:
    """From noise to latents, float32 b 4 h w on the UNet's device."""
    config, forks, seeds = model.config, request.forks, request.seeds()
    assert request.width is not None and request.height is not None
    factor = config.vae.factor
    shape = (config.unet.out_channels, request.height // factor, request.width // factor)
    device, dtype = model.unet_device, model.unet_dtype
    exact = torch.promote_types(dtype, torch.float32)  # what lies outside the network is float32 at least
    denoise = make_denoise(
        model.unet,
        table,
        model.prediction,
        *prompts,
        Guidance(request.cfg_scale, request.cfg_rescale),
        model.plan.batching.value,
        dtype,
        concat=extra_channels(model, request, shape),
        check=check,
    )
    draws = 0

    def noise(sigma: float, sigma_next: float) -> Tensor:
        nonlocal draws
        draws += 1
        return batch_normal(forks.rng, seeds, draws, shape).to(device, exact)

    finite: list[Tensor] = []

    def on_step(step: Step) -> None:
        finite.append(torch.isfinite(step.x).all())
        if device.type == "cpu" and not finite[-1]:
            raise not_finite(step.index + 1, dtype)
        listening.step(model, step, steps=len(sigmas) - 1)

    x = first_noise(
        batch_normal(forks.rng, seeds, 0, shape).to(device, exact), float(sigmas[0]), forks.initial_noise
    )
    sampler = find_sampler(request.sampler)
    options = {}
    if sampler.takes_eta:
        options["eta"] = sampler.default_eta if request.eta is None else request.eta
    x = solver(request.sampler)(denoise, x, sigmas, noise=noise, on_step=on_step, **options)
    if (
        device.type != "cpu"
    ):  # asked once at the end: asking each step would make the host wait for the device
        flags = torch.stack(finite).cpu()
        if not flags.all():
            raise not_finite(int(flags.int().argmin()) + 1, dtype)
    return x / (1 + float(sigmas[-1]) ** 2) ** 0.5  # unit variance, where the last level is not 0


def not_finite(step: int, dtype: torch.dtype) -> NumericalError:
    return NumericalError(f"the latents are not finite after step {step} in {dtype}; try dtype float32")


def extra_channels(model: Model, request: Request, shape: tuple[int, int, int]) -> Tensor | None:
    """What the UNet sees beside the latent, b k h w. An inpainting model without a picture gets a mask that
    covers everything.

    Raises RequestError for models that cannot draw without a picture.
    """
    kind = model.config.concat
    if kind == "none":
        return None
    if kind != "inpaint":
        what = {
            "ip2p": "an instruct-pix2pix model: it edits a picture",
            "depth": "a depth model: it needs a depth map",
        }
        raise RequestError(f"{model.name} is {what[kind]}; text alone is not enough")
    _, height, width = shape
    factor, plan = model.config.vae.factor, model.plan.part("vae")
    grey = torch.zeros(1, 3, height * factor, width * factor, device=plan.device, dtype=plan.dtype.value)
    masked = model.vae.encode(grey).mean * model.config.vae.scale_factor
    mask = torch.ones(1, 1, height, width, device=masked.device, dtype=masked.dtype)
    return torch.cat([mask, masked], dim=1).to(model.unet_device).expand(request.count, -1, -1, -1)


def decode(model: Model, latents: Tensor) -> Tensor:
    """Latents b 4 h w, scaled as the UNet sees them -> pixels b 3 H W, about -1 .. 1."""
    vae = model.vae
    plan = model.plan.part("vae")
    z = (latents / model.config.vae.scale_factor).to(plan.device, plan.dtype.value)
    tile, factor = model.plan.vae_tile.value, model.config.vae.factor
    if tile is None:
        pixels = vae.decode(z)
    else:
        size = tile // factor
        pixels = tiled(vae.decode, z, tile=size, overlap=size // 4, up=factor)
    if not torch.isfinite(pixels).all():
        raise NumericalError(
            f"the VAE gave pixels that are not finite in {plan.dtype.value}; try vae_dtype float32"
        )
    return pixels


def preview(model: Model, denoised: Tensor) -> tuple[Image.Image, ...]:
    """Small pictures of the latents so far. With the tiny autoencoder at full size, else through the VAE at
    no more than 16 x 16 latents: a bounded cost for every model, and no colour table to trust."""
    if model.tiny_vae is not None:
        plan = model.plan.part("taesd")
        pixels = model.tiny_vae.decode(denoised.to(plan.device, plan.dtype.value)) * 2 - 1
        return tuple(to_image(p) for p in pixels)
    h, w = denoised.shape[-2:]
    shrink = max(1, -(-max(h, w) // 16))
    small = torch.nn.functional.avg_pool2d(denoised, shrink, ceil_mode=True) if shrink > 1 else denoised
    return tuple(to_image(decode(model, row[None])[0]) for row in small)
