"""One picture, from beginning to end: encode -> noise -> sample -> decode.

`draw` is the only loop; every task is this loop with another start. It changes nothing of the model, so any
number of threads may draw with one model at a time. All randomness comes from the request's seeds.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Protocol

import torch
from PIL import Image
from torch import Tensor

from minisd.canvas import canvas_of
from minisd.config import ModelConfig
from minisd.control_run import Control, Network, controls_of
from minisd.denoiser import Denoiser
from minisd.errors import Cancelled
from minisd.guidance import Guidance
from minisd.images import to_image
from minisd.latents import decode
from minisd.loras import Applied, Stages
from minisd.model import Model
from minisd.models.edits import FreeU
from minisd.models.once import Once
from minisd.picture_prompt_run import Guest
from minisd.request import Request
from minisd.samplers.names import find_sampler
from minisd.samplers.schedule import SigmaTable
from minisd.samplers.step import Step
from minisd.sampling import sample, schedule_of, sigma_table
from minisd.start import start_of
from minisd.text.account import Account
from minisd.text.conditioning import Encoded, Prompts, encode_request
from minisd.trail import Trail


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
    accounts: tuple[Account, ...]  # what became of the prompts
    seconds: dict[str, float]  # per stage
    trail: Trail  # digests of what was passed through
    applied: tuple[Applied, ...] = ()  # adapters that acted


Listener = Callable[[Progress | Preview], None]


@dataclass(frozen=True)
class Listening:
    """Who hears of the steps, and how often with a preview."""

    model: Model
    on_event: Listener | None
    preview_every: int
    begun: float
    steps: int

    def step(self, step: Step) -> None:
        if self.on_event is None:
            return
        done = step.index + 1
        self.on_event(Progress(done, self.steps, step.sigma, time.perf_counter() - self.begun))
        if self.preview_every and done % self.preview_every == 0 and done < self.steps:
            self.on_event(Preview(done, preview(self.model, step.denoised)))


def encode_stages(staged: Stages, request: Request, steps: int) -> Encoded:
    """The prompts over a run, as each stage's text encoders read them."""
    begin, timeline, encoded = 0, list[tuple[int, Prompts]](), list[Encoded]()
    for end, model in staged.models:
        encoded.append(encode_request(model, request, steps))
        timeline += [(min(e, end), p) for e, p in encoded[-1].timeline if e > begin]
        timeline = [*[t for t in timeline if t[0] < end], next(t for t in timeline if t[0] == end)]
        begin = end
    return replace(encoded[0], timeline=tuple(timeline))


def denoiser_of(
    staged: Stages,
    request: Request,
    table: SigmaTable,
    sigmas: Tensor,
    encoded: Encoded,
    extra: Tensor | None,
    check: Callable[[], None],
    controls: tuple[Control, ...] = (),
    guests: tuple[Guest, ...] = (),
) -> Denoiser:
    """The network with this request's prompts and rules."""
    prompts, model = encoded.timeline[0][1], staged.models[0][1]
    several = len(staged.models) > 1
    return Denoiser(
        network=model.unet,
        table=table,
        prediction=model.config.prediction,
        cond=prompts.conds[0][0],
        weight=prompts.conds[0][1],
        also=prompts.conds[1:],
        uncond=prompts.uncond,
        timeline=encoded.timeline if len(encoded.timeline) > 1 else (),
        always_uncond=find_sampler(request.sampler).both,
        image_scale=request.image_cfg_scale if model.config.concat == "ip2p" else None,
        guidance=guidance_of(request),
        batching=model.plan.batching.value,
        networks=tuple((end, one.unet) for end, one in staged.models) if several else (),
        once=None if several else once_of(model, table, sigmas),
        combined_by=model.plan.kernels.value.guidance,
        dtype=model.unet_dtype,
        sigmas=tuple(float(s) for s in sigmas),
        concat=extra,
        freeu=FreeU(*request.freeu) if request.freeu is not None else None,
        controls=controls,
        guests=guests,
        check=check,
    )


def once_of(model: Model, table: SigmaTable, sigmas: Tensor) -> Once | None:
    """What this run is to compute only once, if the plan says so."""
    kernels = model.plan.kernels.value
    if not kernels.text_once and not kernels.times_once:
        return None
    told = [table.told(float(s)) for s in sigmas if s > 0]
    return Once(told, texts=kernels.text_once, times=kernels.times_once)


def guidance_of(request: Request) -> Guidance:
    """The rules among a request's fields: those named as in Guidance, and three with names of their own."""
    own = {f.name: getattr(request, f.name) for f in fields(Guidance) if hasattr(request, f.name)}
    return Guidance(
        scale=request.cfg_scale,
        rescale=request.cfg_rescale,
        start=request.guidance_start,
        end=request.guidance_end,
        **own,
    )


def latent_shape(config: ModelConfig, request: Request) -> tuple[int, int, int]:
    """c h w of one latent."""
    assert request.width is not None and request.height is not None
    factor = config.vae.factor
    return config.unet.out_channels, request.height // factor, request.width // factor


def draw(
    model: Model,
    request: Request,
    *,
    on_event: Listener | None = None,
    cancel: CancelToken | None = None,
    preview_every: int = 0,
    trail: Trail | None = None,
    networks: Mapping[str, Network] | None = None,
    guests: tuple[Guest, ...] = (),
    stages: Callable[[Model, Request, int], Stages] | None = None,
) -> Drawing:
    """Draw a request made whole by `Request.for_model`. `trail` notes what is passed through. networks: those
    of the request's control units, by their names. stages: gives the models of a run of n steps, where
    adapters act.

    on_event hears of each step, and with preview_every = k of a preview every k steps. cancel is asked before
    each network call; Cancelled is raised within one call of its being set. Raises NumericalError when a
    latent is not finite.
    """
    begun = time.perf_counter()
    seconds: dict[str, float] = {}
    trail = Trail() if trail is None else trail

    def check() -> None:
        if cancel is not None and cancel.is_set():
            raise Cancelled("cancelled by its token; the engine is unchanged")

    def lap(stage: str) -> None:
        seconds[stage] = time.perf_counter() - begun - sum(seconds.values())

    with torch.inference_mode():
        check()
        table = sigma_table(model.config, request)
        schedule = schedule_of(request)
        canvas = canvas_of(request)
        start = start_of(model, request, table, schedule, canvas)
        sigmas = start.sigmas
        steps = max(1, len(sigmas) - 1)
        staged = Stages(((steps, model),)) if stages is None else stages(model, request, steps)
        encoded = encode_stages(staged, request, steps)
        trail.text(encoded.timeline)
        lap("encode")

        shape = latent_shape(model.config, request)
        size = (shape[2] * model.config.vae.factor, shape[1] * model.config.vae.factor)
        controls = controls_of(request.controls, networks or {}, model.config.unet, size, shape[1:])
        denoiser = denoiser_of(staged, request, table, sigmas, encoded, start.extra, check, controls, guests)
        watch = Listening(model, on_event, preview_every, begun, len(sigmas) - 1)
        latents = sample(denoiser, request, start, shape, model.unet_device, watch.step, trail)
        trail.end(latents)
        lap("sample")

        images = []
        for latent in latents:  # one at a time: memory of one, and bits that do not depend on the batch
            check()
            image = to_image(decode(model, latent[None])[0])
            images.append(image if canvas is None else canvas.finished(image))
        lap("decode")
    return Drawing(
        images=tuple(images),
        latents=latents.cpu(),
        request=request,
        schedule=schedule,
        sigmas=tuple(float(s) for s in sigmas),
        tokens=encoded.tokens,
        accounts=encoded.accounts,
        seconds=seconds,
        trail=trail,
        applied=staged.applied,
    )


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
