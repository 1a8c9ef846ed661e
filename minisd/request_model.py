"""What a model decides of a Request where the Request leaves it open, and what the model cannot do of it."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Literal

from minisd.config import ModelConfig, UNetConfig
from minisd.errors import RequestError
from minisd.picture import MAX_PIXELS, MAX_SIDE

if TYPE_CHECKING:
    from minisd.request import Request

DEFAULT_STRENGTH = 0.75


def for_model(request: Request, config: ModelConfig, seed: int) -> Request:
    """See Request.for_model."""
    width, height, resize = drawn_size(request, config)
    for name, value in (("width", width), ("height", height)):
        check_side(name, value, config.vae.factor)
    check_parts(request, config)
    check_depths(request, config.unet)
    strength = request.strength
    if request.image is not None and strength is None:
        strength = 1.0 if config.concat == "ip2p" else DEFAULT_STRENGTH
    variation = request.variation_seed
    if variation is None and request.variation_strength > 0:
        variation = seed
    return replace(
        request,
        width=width,
        height=height,
        resize=resize,
        strength=strength,
        seed=seed if request.seed is None else request.seed,
        variation_seed=variation,
        original_size=request.original_size or (height, width),
        target_size=request.target_size or (height, width),
    )


def check_parts(request: Request, config: ModelConfig) -> None:
    """Raises RequestError for what this model has no part for."""
    if request.clip_skip is not None:
        layers = min(t.config.layers for t in config.text) if config.text else 0
        if request.clip_skip > layers:
            raise RequestError(
                f"clip_skip {request.clip_skip} is outside 1..{layers} of this model", field="clip_skip"
            )
    parts = [use.part for use in config.text]
    for name in ("prompt_2", "negative_prompt_2"):
        if getattr(request, name) is not None and "text_encoder_2" not in parts:
            raise RequestError(
                f"{name} is for a second text encoder, which this model does not have; leave it out",
                field=name,
            )
    for name in ("pag_scale", "sag_scale", "slg_scale"):
        if getattr(request, name) > 0 and not config.unet.depth_mid:
            raise RequestError(
                f"this model has no attention in its middle, where {name} acts; leave it out", field=name
            )


def check_depths(request: Request, unet: UNetConfig) -> None:
    """Raises RequestError for a shortcut that reaches deeper than this UNet goes."""
    levels = len(set(unet.attention_levels.values()))
    blocks = sum(unet.num_res_blocks) + len(unet.num_res_blocks)  # with the first convolution
    acting = {
        "token_merging_levels": (request.token_merging > 0, levels, "resolutions with attention"),
        "hypertile_levels": (request.hypertile is not None, levels, "resolutions with attention"),
        "deep_cache_blocks": (request.deep_cache > 1, blocks, "input blocks"),
    }
    for name, (acts, most, of) in acting.items():
        if acts and getattr(request, name) > most:
            raise RequestError(
                f"{name} is {getattr(request, name)}, and this model has {most} {of}; ask for no more",
                field=name,
            )


def check_side(name: str, value: int, factor: int) -> None:
    if value % factor:
        below = value // factor * factor
        raise RequestError(f"{name} {value} is not a multiple of {factor}; try {below or factor}", field=name)


def drawn_size(
    request: Request, config: ModelConfig
) -> tuple[int, int, Literal["pad", "stretch", "crop", "fill"] | None]:
    """(width, height, resize) of the picture that is drawn: as asked; else the given picture's, padded to
    what latents need; else what the model was trained at. One side alone keeps the picture's proportions."""
    width, height, factor = request.width, request.height, config.vae.factor
    if request.image is None or (request.mask_area == "masked" and width is height is None):
        return width or config.size, height or config.size, request.resize
    left, top, right, bottom = request.outpaint or (0, 0, 0, 0)
    w, h = request.image.width + left + right, request.image.height + top + bottom
    if width is None and height is None:
        width, height = (-(-n // factor) * factor for n in (w, h))
        if width > MAX_SIDE or height > MAX_SIDE or width * height > MAX_PIXELS:
            raise RequestError(
                f"the picture would be drawn at {width} x {height}, more than {MAX_PIXELS:,} pixels; say a "
                "width and height",
                field="width",
            )
        return width, height, request.resize or "pad"
    if width is None:
        width = max(factor, round((height or 0) * w / h / factor) * factor)
    if height is None:
        height = max(factor, round(width * h / w / factor) * factor)
    return width, height, request.resize or "stretch"
