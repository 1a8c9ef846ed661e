"""A second pass at a larger size ("hires fix"): the picture of the first one, enlarged, turned to noise a
little and drawn on, so that a model can draw at sizes at which it would repeat itself.

Latents are enlarged as they are, or as pixels between a decoding and an encoding. The second pass draws its
first noise anew, draw 0 of each seed at the larger size, as A1111 does.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from PIL import Image
from torch import Tensor

from minisd.errors import RequestError, quoted
from minisd.first_noise import first_noise
from minisd.images import to_image
from minisd.latents import decode, encode, to_pixels, to_unet
from minisd.model import Model
from minisd.picture import MAX_PIXELS, MAX_SIDE
from minisd.request import Request
from minisd.samplers.schedule import SigmaTable
from minisd.start import Start, extra_channels, strength_steps

LATENT = {"latent": "bilinear", "latent_bicubic": "bicubic", "latent_nearest": "nearest"}
Enlarge = Callable[[Image.Image], Image.Image]
FILTERS = {"lanczos": Image.Resampling.LANCZOS, "bicubic": Image.Resampling.BICUBIC}


def second_request(request: Request, factor: int) -> Request | None:
    """What the second pass draws, from a request made whole; None where there is none. factor: pixels per
    latent. Raises RequestError for a size that cannot be."""
    if request.hires_scale == 1.0:
        return None
    assert request.width is not None and request.height is not None, "set by Request.for_model"
    size = (request.width, request.height)
    width, height = (round(n * request.hires_scale / factor) * factor for n in size)
    if width > MAX_SIDE or height > MAX_SIDE or width * height > MAX_PIXELS:
        raise RequestError(
            f"hires_scale {request.hires_scale:g} makes {width} x {height}, more than {MAX_PIXELS:,} pixels; "
            "ask for less",
            field="hires_scale",
        )
    first = (request.height, request.width)
    rule = request.forks.strength_rule
    return replace(
        request,
        width=width,
        height=height,
        steps=request.hires_steps or request.steps,
        image=None,
        strength=None,
        resize=None,
        inversion="no",
        inversion_prompt="",
        hires_scale=1.0,
        hires_upscaler="lanczos",
        hires_strength=0.5,
        hires_steps=None,
        # A1111 makes all of its second pass's steps, whatever it does for image to image
        strength_rule="a1111_exact" if rule == "a1111" else rule,
        original_size=(height, width) if request.original_size == first else request.original_size,
        target_size=(height, width) if request.target_size == first else request.target_size,
    )


def second_levels(first: Request, second: Request, table: SigmaTable, schedule: str, family: str) -> Tensor:
    """The noise levels of the second pass, float64 [n + 1]."""
    full, steps = strength_steps(table, second, schedule, family, first.hires_strength)
    return full[len(full) - 1 - steps :]


def second_start(
    model: Model,
    first: Request,
    second: Request,
    sigmas: Tensor,
    latents: Tensor,
    upscaler: Enlarge | None = None,
) -> Start:
    """Where the second pass begins. latents: of the first, b c h w. upscaler: what enlarges pictures, where
    the request names one. Raises RequestError for models that see a picture of the first pass's size in
    channels of their own."""
    if model.config.concat in ("inpaint", "ip2p") and first.image is not None:
        raise RequestError(
            f"{model.name} sees its picture at the size of the first pass; leave hires_scale out",
            field="hires_scale",
        )
    larger = enlarged(model, latents, first, second, upscaler)
    sampled = second.forks.vae_latent == "sample" and first.hires_upscaler not in LATENT
    return Start(sigmas, larger, None, extra_channels(model, second, None), int(sampled), 1 + sampled)


def enlarged(
    model: Model, latents: Tensor, first: Request, second: Request, upscaler: Enlarge | None = None
) -> Tensor:
    """latents b c h w at the size of the second pass, on the UNet's device."""
    assert second.width is not None and second.height is not None, "set by second_request"
    factor = model.config.vae.factor
    mode = LATENT.get(first.hires_upscaler)
    if mode is not None:
        size = (second.height // factor, second.width // factor)
        rows = [torch.nn.functional.interpolate(row[None], size, mode=mode) for row in latents]
        return torch.cat(rows)
    rows = []
    for index, row in enumerate(latents):
        image = to_image(decode(model, row[None], first.wrap)[0])
        if first.hires_upscaler not in FILTERS:
            if upscaler is None:
                raise RequestError(
                    f"hires_upscaler {quoted(first.hires_upscaler)} was not loaded; draw with an Engine",
                    field="hires_upscaler",
                )
            image = upscaler(image)  # by its own factor, mostly 4
        kind = FILTERS.get(first.hires_upscaler, Image.Resampling.LANCZOS)
        image = image.resize((second.width, second.height), kind)

        def unit(mean: Tensor, index: int = index) -> Tensor:
            return first_noise(second, (mean.shape[1], mean.shape[2], mean.shape[3]))[index : index + 1]

        sampled = unit if second.forks.vae_latent == "sample" else None
        rows.append(
            to_unet(encode(model, to_pixels(image), sampled, first.wrap), model.config.vae).to(latents)
        )
    return torch.cat(rows)


def unpadded(image: Image.Image, size: tuple[int, int], request: Request) -> Image.Image:
    """image without what was padded to a picture of `size` (width, height) before it was enlarged."""
    width, height = (round(n * request.hires_scale) for n in size)
    return image.crop((0, 0, min(width, image.width), min(height, image.height)))
