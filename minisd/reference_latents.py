"""Pictures of the units "reference-only" as latents, and the noise that is laid over them."""

from __future__ import annotations

from collections.abc import Sequence

from minisd.canvas import resized
from minisd.control import REFERENCE, ControlUnit
from minisd.errors import RequestError
from minisd.latents import encode, to_pixels, to_unet
from minisd.model import Model
from minisd.reference_run import Reference
from minisd.samplers.noise import philox_normal


def references_of(units: Sequence[ControlUnit], model: Model, size: tuple[int, int]) -> tuple[Reference, ...]:
    """The pictures of the units "reference-only" that act, encoded at the size drawn. Raises RequestError for
    a model that takes more than latents."""
    found = []
    for unit in units:
        if unit.model != REFERENCE or unit.weight == 0.0:
            continue
        unet = model.config.unet
        if unet.in_channels != unet.out_channels:
            raise RequestError(
                f"{REFERENCE} needs a model that takes latents alone; this one takes {unet.in_channels} "
                "channels (inpainting, depth or instruct)",
                field="controls",
            )
        pixels = to_pixels(resized(unit.image.image.convert("RGB"), size, unit.resize))
        z = to_unet(encode(model, pixels), model.config.vae).float().to(model.unet_device)
        noise = philox_normal(0, 0, z.shape[1:])[None].to(z.device)
        found.append(Reference(unit, z, noise))
    return tuple(found)
