"""One picture, from beginning to end: encode -> noise -> sample -> decode.

`draw` is the only loop; every task is this loop with another start. It changes nothing of the model, so any
number of threads may draw with one model at a time. All randomness comes from the request's seeds.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, fields, replace

import torch
from PIL import Image
from torch import Tensor

from minisd.areas import areas_of
from minisd.canvas import canvas_of
from minisd.config import ModelConfig
from minisd.control_run import Control, Network, controls_of
from minisd.denoiser import Denoiser
from minisd.errors import Cancelled, RequestError
from minisd.events import CancelToken, Listener, Pace
from minisd.guidance import Guidance
from minisd.halves import half_of
from minisd.hires import Enlarge, second_levels, second_request, second_start, unpadded
from minisd.images import to_image
from minisd.inversion import check_inversion, described, inverted
from minisd.latents import decode
from minisd.listening import Listening
from minisd.loras import Applied, Stages
from minisd.model import Model
from minisd.models.edits import FreeU
from minisd.models.once import Once
from minisd.picture_prompt_run import Guest
from minisd.previews import Previewer
from minisd.reference_latents import references_of
from minisd.reference_run import Reference
from minisd.refiner import check_pair, first_share
from minisd.relay import Relay, tiles_in
from minisd.request import Request
from minisd.request_model import check_depths
from minisd.samplers.names import find_sampler
from minisd.samplers.schedule import SigmaTable
from minisd.sampling import sample, schedule_of, sigma_table
from minisd.shortcuts import check_beside, shortcuts_of
from minisd.staged import encode_stages, told_guidance
from minisd.start import Start, start_of
from minisd.text.account import Account
from minisd.text.conditioning import Encoded, brought
from minisd.text.written import alone
from minisd.trail import Trail


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
    requests: tuple[Request, ...] = ()  # as drawn, choices made: one for all images, or each
    template: Request | None = None  # as asked for, with its styles and choices

    def alone(self, index: int) -> Request:
        """The request that draws just image `index`."""
        return self.requests[index] if len(self.requests) > 1 else alone(self.request, index)

    applied: tuple[Applied, ...] = ()  # adapters that acted


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
    references: tuple[Reference, ...] = (),
    pool: ThreadPoolExecutor | None = None,
) -> Denoiser:
    """The network with this request's prompts and rules. pool: the thread for a second device."""
    prompts, model = encoded.timeline[0][1], staged.models[0][1]
    several = len(staged.models) > 1
    own = once_of(model, table, sigmas) if pool is not None and not several else None
    half = half_of(staged, own, pool, controls, guests, references)
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
        guidance=guidance_of(request, told=model.config.unet.guidance_dim is not None),
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
        references=references,
        check=check,
        wrap=request.wrap,
        half=half,
        shortcuts=shortcuts_of(request, model.config.vae.factor),
    )


def once_of(model: Model, table: SigmaTable, sigmas: Tensor) -> Once | None:
    """What this run is to compute only once, if the plan says so."""
    kernels = model.plan.kernels.value
    if not kernels.text_once and not kernels.times_once:
        return None
    told = [table.told(float(s)) for s in sigmas if s > 0]
    return Once(told, texts=kernels.text_once, times=kernels.times_once)


def guidance_of(request: Request, *, told: bool = False) -> Guidance:
    """The rules among a request's fields: those named as in Guidance, and three with names of their own.
    told: the model is told the scale, and predicts the guided picture by itself."""
    own = {f.name: getattr(request, f.name) for f in fields(Guidance) if hasattr(request, f.name)}
    return Guidance(
        scale=1.0 if told else request.cfg_scale,
        rescale=request.cfg_rescale,
        start=request.guidance_start,
        end=request.guidance_end,
        **own,
    )


@contextmanager
def as_planned(model: Model) -> Iterator[None]:
    """Inside, an application's torch.autocast does not reach the networks: the plan says what computes in
    which precision."""
    kinds = {"cpu", *(torch.device(p.device).type for p in model.plan.parts)}
    with ExitStack() as stack:
        for kind in sorted(kinds):
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        yield


@dataclass(frozen=True)
class Help:
    """What draws beside the model: control networks by their names, pictures attended to, adapters, and the
    model that takes over."""

    networks: Mapping[str, Network]
    guests: tuple[Guest, ...]
    stages: Callable[[Model, Request, int], Stages] | None
    refiner: Model | None
    pool: ThreadPoolExecutor  # of one thread


def run_pass(
    model: Model,
    request: Request,
    table: SigmaTable,
    start: Start,
    helped: Help,
    watch: Listening,
    check: Callable[[], None],
    trail: Trail,
    lap: Callable[[str], None],
) -> tuple[Tensor, Encoded, Stages]:
    """From a start to latents b c h w: one run of a solver."""
    sigmas = start.sigmas
    steps = max(1, len(sigmas) - 1)
    staged = Stages(((steps, model),)) if helped.stages is None else helped.stages(model, request, steps)
    shape, factor = latent_shape(model.config, request), model.config.vae.factor

    def encode(by: Stages, one: Request) -> Encoded:
        told = told_guidance(encode_stages(by, one, steps), by.models[0][1], one.cfg_scale)
        trail.text(told.timeline)
        return brought(told, by.models[0][1].unet_device, by.models[0][1].unet_dtype)

    encoded = encode(staged, request)
    areas, accounts = areas_of(lambda one: encode(staged, one), request, encoded, shape[1:])
    refiner, second, share = helped.refiner, None, 0
    if refiner is not None:
        alone = Stages(((steps, refiner),))
        told = encode(alone, request)
        own = sigma_table(refiner.config, request)
        others, _ = areas_of(lambda one: encode(alone, one), request, told, shape[1:])
        extra = None if start.extra is None else start.extra.to(refiner.unet_device)
        second = denoiser_of(alone, request, own, sigmas, told, extra, check, pool=helped.pool).over(others)
        share = first_share(request, table, second.sigmas)
    lap("encode")
    size = (shape[2] * factor, shape[1] * factor)
    controls = controls_of(
        request.controls, helped.networks, model.config.unet, size, shape[1:], request.wrap
    )
    check_beside(shortcuts_of(request, factor), controls)
    references = references_of(request.controls, model, size)
    beside = controls, helped.guests, references, helped.pool
    tiling = tiles_in(request, shape[1:], factor)
    if request.inversion != "no" and len(sigmas) > 1:
        check_inversion(model, request, start)
        assert start.latents is not None
        said = described(request)
        heard = encode(staged, said)
        there = denoiser_of(staged, said, table, sigmas, heard, start.extra, check, *beside)
        by = Relay(there, tiles=tiling[0], overlap=tiling[1]).denoise()
        start = replace(start, x=inverted(by, request, start.latents, sigmas, watch.step))
        watch = replace(watch, before=watch.before + len(sigmas) - 1)
    denoiser = denoiser_of(staged, request, table, sigmas, encoded, start.extra, check, *beside).over(areas)
    apart = None if refiner is None or refiner.unet_device == model.unet_device else refiner.unet_device
    relay = Relay(denoiser, second, share, *tiling, apart)
    latents = sample(relay, request, start, shape, model.unet_device, watch.step, trail)
    lap("sample")
    return latents, replace(encoded, accounts=encoded.accounts + accounts), staged


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
    preview: tuple[str, Previewer] | None = None,
    job: str = "",
    trail: Trail | None = None,
    networks: Mapping[str, Network] | None = None,
    guests: tuple[Guest, ...] = (),
    stages: Callable[[Model, Request, int], Stages] | None = None,
    refiner: Model | None = None,
    upscaler: Enlarge | None = None,
) -> Drawing:
    """Draw a request made whole by `Request.for_model`. `trail` notes what is passed through. networks: those
    of the request's control units, by their names. stages: gives the models of a run of n steps, where
    adapters act. refiner: the model that takes over at `refiner_at`; controls, adapters and pictures attended
    to act in the first alone. upscaler: what enlarges pictures between two passes, where the request names
    one.

    on_event hears of each step, and with preview_every = k of a preview every k steps, made by `preview`
    (`Previews.by`). job: the name that events carry. cancel is asked before each network call; Cancelled is
    raised within one call of its being set. Raises NumericalError when a latent is not finite.
    """
    pace = Pace()
    seconds: dict[str, float] = {}
    trail = Trail() if trail is None else trail

    def check() -> None:
        if cancel is not None and cancel.is_set():
            raise Cancelled("cancelled by its token; the engine is unchanged")

    def lap(stage: str) -> None:
        passed = time.perf_counter() - pace.begun - sum(seconds.values())
        seconds[stage] = seconds.get(stage, 0.0) + passed

    if (refiner is None) != (request.refiner_at is None):
        raise RequestError(
            "refiner_at and a refiner go together: load one and give it to run, or leave refiner_at out",
            field="refiner_at",
        )
    if refiner is not None:
        check_pair(model.config, refiner.config)
        check_depths(request, refiner.config.unet)
    thread = ThreadPoolExecutor(1, "minisd-uncond")  # there is none until it is given something to do
    with torch.inference_mode(), as_planned(model), thread as pool:
        check()
        table = sigma_table(model.config, request)
        schedule = schedule_of(request)
        canvas = canvas_of(request)
        start = start_of(model, request, table, schedule, canvas)
        sigmas = start.sigmas
        second = second_request(request, model.config.vae.factor)
        more = (
            None if second is None else second_levels(request, second, table, schedule, model.config.family)
        )
        total = len(sigmas) - 1 + (0 if more is None else len(more) - 1)
        there = len(sigmas) - 1 if request.inversion != "no" else 0  # the way to the noise is counted too
        total += there
        watch = Listening(on_event, preview, preview_every, pace, total, job)
        helped = Help(networks or {}, guests, stages, refiner, pool)
        latents, encoded, staged = run_pass(model, request, table, start, helped, watch, check, trail, lap)
        if second is not None and more is not None:
            again = second_start(model, request, second, more, latents, upscaler)
            watch = replace(watch, before=there + len(sigmas) - 1)
            latents, _, _ = run_pass(model, second, table, again, helped, watch, check, trail, lap)
        trail.end(latents)

        images = []
        for latent in latents:  # one at a time: memory of one, and bits that do not depend on the batch
            check()
            image = to_image(decode(model, latent[None], request.wrap)[0])
            if canvas is not None:
                image = canvas.finished(image) if second is None else unpadded(image, canvas.size, request)
            images.append(image)
        lap("decode")
        trail.settle()
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
