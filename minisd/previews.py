"""Previews: small pictures of latents that are still on their way, three ways, chosen by name.

    tiny     a tiny autoencoder beside the model (TAESD), at full size
    vae      the model's own VAE on latents shrunk to at most 16 x 16: a bounded cost for every model
    linear   red, green and blue as linear functions of the latents' channels, one pixel for each latent
    auto     tiny where there is one, else vae

The linear map is fitted by least squares to the VAE at hand, so it holds for any model and nothing is copied
from a table: the eight corners of the colour cube are encoded and decoded again, and the decoded colours are
explained by the latents. On the embedded model that comes as near to its pictures as a linear map can: 20.91
dB against 20.90 of a map fitted to the very pictures it is measured on, the final latents of six.
"""

from __future__ import annotations

import difflib
import threading
from collections.abc import Callable
from typing import Literal, get_args

import torch
from PIL import Image
from torch import Tensor

from minisd.errors import RequestError, quoted
from minisd.images import to_image
from minisd.latents import decode, encode, to_unet
from minisd.model import Model

By = Literal["auto", "tiny", "vae", "linear"]
Previewer = Callable[[Tensor], tuple[Image.Image, ...]]  # latents b c h w as the UNet sees them -> b pictures
MOST = 16  # latents on a side that the VAE decodes for a preview
FLAT = 8  # latents on a side of the flat pictures that the linear map is fitted to


def tiny(model: Model, latents: Tensor) -> tuple[Image.Image, ...]:
    """Through the tiny autoencoder, which the model must have."""
    assert model.tiny_vae is not None, "checked by Previews.by"
    plan = model.plan.part("taesd")
    pixels = model.tiny_vae.decode(latents.to(plan.device, plan.dtype.value)) * 2 - 1
    return tuple(to_image(p) for p in pixels)


def small(model: Model, latents: Tensor) -> tuple[Image.Image, ...]:
    """Through the VAE, shrunk."""
    shrink = max(1, -(-max(latents.shape[-2:]) // MOST))
    less = torch.nn.functional.avg_pool2d(latents, shrink, ceil_mode=True) if shrink > 1 else latents
    return tuple(to_image(decode(model, row[None])[0]) for row in less)


def with_one(latents: Tensor) -> Tensor:
    """b c h w -> b h w c + 1: each latent's channels and a 1, for the constant of a linear map."""
    rows = latents.movedim(1, -1).double()
    return torch.cat([rows, torch.ones_like(rows[..., :1])], dim=-1)


def fitted(model: Model) -> Tensor:
    """The linear map [c + 1, 3] of a model, float64 on the CPU: latents and a 1 to RGB in -1 .. 1."""
    factor = model.config.vae.factor
    ends = torch.tensor([-1.0, 1.0])
    latents, colours = [], []
    for colour in torch.cartesian_prod(ends, ends, ends):
        flat = colour[None, :, None, None].expand(1, 3, FLAT * factor, FLAT * factor)
        z = to_unet(encode(model, flat), model.config.vae)
        seen = torch.nn.functional.avg_pool2d(decode(model, z).double(), factor).clamp(-1, 1)
        latents.append(with_one(z).cpu().flatten(0, -2))
        colours.append(seen.cpu().movedim(1, -1).flatten(0, -2))
    # the driver that takes columns which do not depend on each other for granted gives noise where they do
    return torch.linalg.lstsq(torch.cat(latents), torch.cat(colours), driver="gelsd").solution


def linear(mapping: Tensor, latents: Tensor) -> tuple[Image.Image, ...]:
    """By a map that `fitted` made."""
    pixels = with_one(latents.cpu()) @ mapping
    return tuple(to_image(p) for p in pixels.movedim(-1, 1))


class Previews:
    """The previews of one engine, which has one VAE: names to functions. The linear map is fitted when it is
    first asked for, in as long as a picture of 180 x 180 takes to encode and decode. Thread-safe."""

    def __init__(self) -> None:
        self._map: Tensor | None = None
        self._lock = threading.Lock()

    def by(self, name: str, model: Model) -> tuple[str, Previewer]:
        """(which one it is, the function) of a name. Raises RequestError for one that is not there."""
        if name not in get_args(By):
            near = difflib.get_close_matches(str(name), get_args(By), 1)
            hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(get_args(By))}"
            raise RequestError(f"there is no preview {quoted(name)}; {hint}", field="preview")
        if name == "auto":
            name = "vae" if model.tiny_vae is None else "tiny"
        if name == "tiny" and model.tiny_vae is None:
            raise RequestError(
                "this model has no tiny VAE to preview with; load(..., tiny_vae=PATH), or preview by linear",
                field="preview",
            )
        if name == "linear":
            mapping = self._mapping(model)
            return name, lambda latents: linear(mapping, latents)
        how = tiny if name == "tiny" else small
        return name, lambda latents: how(model, latents)

    def _mapping(self, model: Model) -> Tensor:
        with self._lock:
            if self._map is None:
                with torch.inference_mode():
                    self._map = fitted(model)
            return self._map
