"""Between pixels and latents: the autoencoder of a model, with its scale, its tiles and its dtype."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from minisd.config import VAEConfig
from minisd.errors import NumericalError
from minisd.model import Model
from minisd.models.conv import NO_WRAP, Wrap
from minisd.models.tiling import in_parts


def to_pixels(image: Image.Image) -> Tensor:
    """8-bit RGB -> 1 3 h w float32, -1 .. 1."""
    levels = torch.from_numpy(np.array(image.convert("RGB")))
    return levels.permute(2, 0, 1)[None].float() / 127.5 - 1


def encode(
    model: Model,
    pixels: Tensor,
    sampled: Callable[[Tensor], Tensor] | None = None,
    wrap: Wrap = NO_WRAP,
) -> Tensor:
    """Pixels 1 3 H W, -1 .. 1 -> latents b 4 h w, not scaled: the mean of the posterior (b = 1), or
    `sampled(mean)` of unit noise b 4 h w laid over it. On the VAE's device, in its dtype. wrap: axes along
    which the picture goes on at its opposite edge.

    Raises NumericalError where they are not finite.
    """
    vae, plan = model.vae, model.plan.part("vae")
    x = pixels.to(plan.device, plan.dtype.value)

    def moments(part: Tensor, wrap: Wrap) -> Tensor:
        posterior = vae.encode(part, wrap)
        return torch.cat([posterior.mean, (0.5 * posterior.logvar).exp()], dim=1)

    tile, factor = model.plan.vae_tile.value, model.config.vae.factor
    if tile is None:
        both = moments(x, wrap)
    else:
        tile = tile // factor * factor
        overlap = tile // 4 // factor * factor
        both = in_parts(moments, x, tile=tile, overlap=overlap, down=factor, wrap=wrap)
    mean, deviation = both.chunk(2, dim=1)
    z = mean if sampled is None else mean + deviation * sampled(mean).to(mean)
    if not torch.isfinite(z).all():
        raise NumericalError(
            f"the VAE gave latents that are not finite in {plan.dtype.value}; try vae_dtype float32"
        )
    return z


def to_unet(z: Tensor, config: VAEConfig) -> Tensor:
    """Latents as the UNet was trained on them, from what the VAE gives: b c h w."""
    if config.latents_mean is None or config.latents_std is None:
        return z * config.scale_factor
    mean, std = per_channel(config.latents_mean, z), per_channel(config.latents_std, z)
    return (z - mean) * (config.scale_factor / std)


def to_vae(latents: Tensor, config: VAEConfig) -> Tensor:
    """The way back."""
    if config.latents_mean is None or config.latents_std is None:
        return latents / config.scale_factor
    mean, std = per_channel(config.latents_mean, latents), per_channel(config.latents_std, latents)
    return latents * (std / config.scale_factor) + mean


def per_channel(values: tuple[float, ...], like: Tensor) -> Tensor:
    return torch.tensor(values, dtype=like.dtype, device=like.device)[:, None, None]


def decode(model: Model, latents: Tensor, wrap: Wrap = NO_WRAP) -> Tensor:
    """Latents b 4 h w, scaled as the UNet sees them -> pixels b 3 H W, about -1 .. 1.

    Raises NumericalError where they are not finite.
    """
    vae = model.vae
    plan = model.plan.part("vae")
    z = to_vae(latents, model.config.vae).to(plan.device, plan.dtype.value)
    tile, factor = model.plan.vae_tile.value, model.config.vae.factor
    if tile is None:
        pixels = vae.decode(z, wrap)
    else:
        size = tile // factor
        pixels = in_parts(vae.decode, z, tile=size, overlap=size // 4, up=factor, wrap=wrap)
    if not torch.isfinite(pixels).all():
        raise NumericalError(
            f"the VAE gave pixels that are not finite in {plan.dtype.value}; try vae_dtype float32"
        )
    return pixels
