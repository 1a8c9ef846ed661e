"""Where a run begins: which levels a strength makes, the picture's latents, and what of them is held.

A picture is turned to noise at some level, x = z + sigma n, and the run goes on from there. A strength
decides the level; the rules by which programs turn it into steps are `strength_steps`. What a mask leaves
black is held: at every step the network's answer is replaced by the picture's latents there, so that a
solver of any kind follows z + sigma n exactly. With a soft mask (Levin and Fried 2023, arXiv:2306.00950)
each latent is held for its own share of the steps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from minisd.canvas import Canvas
from minisd.errors import RequestError
from minisd.first_noise import first_noise
from minisd.guidance import step_at
from minisd.latents import encode, to_pixels, to_unet
from minisd.model import Model
from minisd.request import Request
from minisd.samplers.schedule import SigmaTable
from minisd.sampling import run_sigmas

Answer = TypeVar("Answer", Tensor, tuple[Tensor, Tensor])


@dataclass(frozen=True)
class Start:
    """sigmas: the levels of the run, float64 [n + 1]. latents: of the picture, b c h w, scaled as the UNet
    sees them; None where a run begins with noise alone. drawn: 1 1 h w, how much each latent is drawn anew,
    0 .. 1; None: all. extra: further channels that the UNet sees, b k h w. first: number of the random draw
    that is the first noise; taken: how many are taken when the steps begin to draw. pure: noise
    alone is what the network sees first, also where the picture is held (diffusers' masks at strength 1). x:
    what a run begins with, b c h w, in place of noise laid over the latents (inversion)."""

    sigmas: Tensor
    latents: Tensor | None = None
    drawn: Tensor | None = None
    extra: Tensor | None = None
    first: int = 0
    taken: int = 1
    pure: bool = False
    x: Tensor | None = None

    def held(self, denoise: Callable[[Tensor, float], Answer]) -> Callable[[Tensor, float], Answer]:
        """denoise, answering with the picture's latents where they are held (both answers, where it gives
        two)."""
        if self.latents is None or self.drawn is None:
            return denoise
        latents, drawn = self.latents, self.drawn
        sigmas: Sequence[float] = [float(s) for s in self.sigmas]

        def call(x: Tensor, sigma: float) -> Answer:
            share = step_at(sigma, sigmas) / max(1, len(sigmas) - 1)
            free = drawn >= 1 - share if share > 0 else drawn >= 1
            kept = latents.to(x)
            if self.pure and sigma == sigmas[0]:
                # x is noise alone: the answer from which a first-order step leads to z + sigma n
                noise, left = x / (1 + sigma**2) ** 0.5, sigmas[1] / sigma
                kept = (kept + sigmas[1] * noise - left * x) / (1 - left)
            answer = denoise(x, sigma)
            if isinstance(answer, tuple):
                return tuple(torch.where(free, one, kept) for one in answer)  # type: ignore[return-value]
            return torch.where(free, answer, kept)

        return call


def start_of(
    model: Model, request: Request, table: SigmaTable, schedule: str, canvas: Canvas | None
) -> Start:
    """The start of a request made whole. Raises RequestError for what the model cannot do."""
    kind, family = model.config.concat, model.config.family
    if canvas is None:
        sigmas = run_sigmas(table, request, schedule, family)
        return Start(sigmas, extra=extra_channels(model, request, None))
    full, steps = strength_steps(table, request, schedule, family)
    sigmas = full[len(full) - 1 - steps :]
    assert request.strength is not None, "set by Request.for_model"
    # nothing of the picture is left in the noise of a model that sees it in channels of its own
    alone = request.strength == 1.0 and (kind == "ip2p" or (kind == "inpaint" and not request.forks.paste))
    draws, latents = 0, None
    if not alone:
        z = to_unet(
            encode(model, to_pixels(canvas.image), sampler_of(request, draws), request.wrap), model.config.vae
        )
        draws += request.forks.vae_latent == "sample"
        latents = z.to(model.unet_device, torch.promote_types(model.unet_dtype, torch.float32))
        latents = latents.expand(request.count, -1, -1, -1)
    mask = None if canvas.mask is None else drawn_latents(canvas.mask, request, model.config.vae.factor)
    mask = None if mask is None else mask.to(model.unet_device)
    pure = request.strength == 1.0 and mask is not None and not request.forks.paste
    if mask is not None and latents is not None and request.mask_fill in ("noise", "nothing"):
        blank = torch.zeros_like(latents)
        if request.mask_fill == "noise":
            _, c, h, w = latents.shape
            blank = first_noise(request, (c, h, w), draws).to(latents)
        latents = torch.where(mask > 0, blank, latents)
    extra = extra_channels(model, request, canvas, draws + 1)
    if kind == "inpaint" and not request.forks.paste:
        mask = None  # the network alone decides, as in diffusers
    again = kind == "inpaint" and request.forks.vae_latent == "sample"  # the picture under the mask
    return Start(sigmas, latents, mask, extra, draws, draws + 1 + again, pure)


def strength_steps(
    table: SigmaTable, request: Request, schedule: str, family: str, strength: float | None = None
) -> tuple[Tensor, int]:
    """(levels of a whole run, how many of its last steps are made). strength: in place of the request's.

    share: round(strength * steps) of the run of `steps`. diffusers: rounded down. a1111: that and one more.
    a1111_exact, sdnext: `steps` steps of a longer run. sgm: the share of the levels, the 0 among them,
    rounded down, less one.
    """
    steps, rule = request.steps, request.forks.strength_rule
    if strength is None:
        strength = request.strength or 0.0
    longer = steps
    if rule == "a1111_exact" and strength > 0:
        longer = int(steps / min(strength, 0.999))
    elif rule == "sdnext" and strength > 0:
        longer = int(steps // strength) + 1
    if request.sigmas is not None:  # levels that were named cannot be made more
        longer = steps = len(request.sigmas) - 1
    full = run_sigmas(table, replace_steps(request, longer, strength), schedule, family)
    made = {
        "share": round(strength * steps),
        "diffusers": int(strength * steps),
        "a1111": int(min(strength, 0.999) * steps) + 1,
        "a1111_exact": steps if strength > 0 else 0,
        "sdnext": int(strength * longer),
        "sgm": max(int(strength * (steps + 1)), 1) - 1,
    }[rule]
    return full, min(made, len(full) - 1)


def replace_steps(request: Request, steps: int, strength: float) -> Request:
    """Raises RequestError where a strength asks for a run longer than a run may be."""
    if steps == request.steps:
        return request
    try:
        return replace(request, steps=steps)
    except RequestError as error:
        raise RequestError(
            f"strength {strength:g} by the rule {request.forks.strength_rule} needs a run of {steps} "
            "steps, more than there can be; ask for a greater strength or fewer steps",
            field="strength",
        ) from error


def sampler_of(request: Request, draw: int) -> Callable[[Tensor], Tensor] | None:
    """What `encode` samples with, if the request has it sample: draw number `draw` of each seed."""
    if request.forks.vae_latent == "mean":
        return None
    return lambda mean: first_noise(request, (mean.shape[1], mean.shape[2], mean.shape[3]), draw)


def drawn_latents(mask: Image.Image, request: Request, factor: int) -> Tensor:
    """Of a mask of pixels, how much each latent is drawn anew, 1 1 h w float32. Hard masks give 0 and 1, by
    the fork `mask_cells`; soft ones the mean of the pixels."""
    levels = np.asarray(mask, dtype=np.float32) / 255
    h, w = levels.shape[0] // factor, levels.shape[1] // factor
    cells = levels.reshape(h, factor, w, factor)
    if request.mask_soft:
        out = cells.mean(axis=(1, 3))
    elif request.forks.mask_cells == "cover":
        out = (cells.max(axis=(1, 3)) >= 0.5).astype(np.float32)
    elif request.forks.mask_cells == "nearest":
        out = (cells[:, 0, :, 0] >= 0.5).astype(np.float32)
    else:
        small = mask.resize((w, h), Image.Resampling.BICUBIC)
        out = np.around(np.asarray(small, dtype=np.float32) / 255)
    return torch.from_numpy(out.copy())[None, None]


def extra_channels(model: Model, request: Request, canvas: Canvas | None, draw: int = 0) -> Tensor | None:
    """What the UNet sees beside the latent, b k h w. An inpainting model without a picture gets a mask that
    covers everything. draw: number of the random draw for a sampled picture.

    Raises RequestError for models that cannot draw without a picture, and for a depth map that no model sees.
    """
    kind = model.config.concat
    if request.depth is not None and kind != "depth":
        raise RequestError(f"{model.name} takes no depth map; leave it out", field="depth")
    if kind == "none":
        return None
    assert request.width is not None and request.height is not None
    factor, vae = model.config.vae.factor, model.config.vae
    if kind == "depth":
        if request.depth is None:
            raise RequestError(f"{model.name} is a depth model: it needs a depth map", field="depth")
        extra = depth_channel(request.depth.image, request.height // factor, request.width // factor)
    elif kind == "ip2p":
        if canvas is None:
            raise RequestError(
                f"{model.name} is an instruct-pix2pix model, which edits a picture: give an image",
                field="image",
            )
        extra = encode(
            model, to_pixels(canvas.image), wrap=request.wrap
        )  # the mean, and not scaled: so it was trained
    elif canvas is None:
        grey = torch.zeros(1, 3, request.height, request.width)
        masked = to_unet(encode(model, grey, wrap=request.wrap), vae)
        extra = torch.cat([masked.new_ones(1, 1, *masked.shape[-2:]), masked], dim=1)
    else:
        pixels = to_pixels(canvas.image)
        covered = torch.ones(1, 1, *pixels.shape[-2:])
        if canvas.mask is not None:
            covered = torch.from_numpy(np.array(canvas.mask, dtype=np.float32))[None, None] / 255
        masked = to_unet(
            encode(model, pixels * (covered < 0.5), sampler_of(request, draw), request.wrap), vae
        )
        whole = Image.new("L", canvas.image.size, 255) if canvas.mask is None else canvas.mask
        mask = drawn_latents(whole, request, factor).to(masked)
        extra = torch.cat([mask.expand(len(masked), -1, -1, -1), masked], dim=1)
    return extra.to(model.unet_device).expand(request.count, -1, -1, -1)


def depth_channel(image: Image.Image, height: int, width: int) -> Tensor:
    """A depth map, white is near -> 1 1 h w, scaled to -1 .. 1 by its own ends, as SD2's depth model was
    trained."""
    levels = torch.from_numpy(np.array(image.convert("L"), dtype=np.float32))[None, None] / 255
    small = torch.nn.functional.interpolate(levels, (height, width), mode="bicubic", align_corners=False)
    low, high = small.amin(), small.amax()
    if low == high:
        return torch.zeros_like(small)
    return 2 * (small - low) / (high - low) - 1
