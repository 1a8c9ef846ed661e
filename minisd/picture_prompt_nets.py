"""Pictures of picture prompts seen: networks loaded for them, and let go afterwards."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from minisd.errors import CheckpointError, quoted
from minisd.model import Model
from minisd.models.clip_vision import MEAN, STD, ImageEncoder, Seen
from minisd.models.fused import use
from minisd.models.ip_adapter import IPAdapter
from minisd.picture_prompt import PicturePrompt
from minisd.picture_prompt_run import Guest
from minisd.weights_loader.ip_file import open_ip_adapter, open_vision

FIELD = "picture_prompts"  # of a Request
Path = str | os.PathLike[str]


def guests_of(
    prompts: Sequence[PicturePrompt], model: Model, path: Callable[[str, str], Path]
) -> tuple[Guest, ...]:
    """Picture prompts of a request, seen. path: of a name, for a field of a Request. Networks are let go
    afterwards: only keys and values are needed in the run. Raises CheckpointError."""
    guests = []
    for prompt in prompts:
        if prompt.weight == 0.0:
            continue
        adapter, encoder = (
            load_adapter(path(prompt.model, FIELD), model),
            load_encoder(path(prompt.encoder, FIELD), model),
        )
        with torch.inference_mode():
            pixels = vision_pixels(prompt.image.image, encoder.config.image_size)
            like = encoder.visual_projection.weight
            pixels = pixels.to(like.device, like.dtype)
            check_dim(prompt, adapter, encoder)
            seen = encoder(pixels)
            # the published code: no picture is a vector of zeros, or what the tower makes of pixels of zeros
            tokens = seen.tokens
            if adapter.config.kind != "linear":
                tokens = encoder(torch.zeros_like(pixels)).tokens
            blank = Seen(torch.zeros_like(seen.embeds), tokens)
            guests.append(Guest(prompt, adapter(seen), adapter(blank)))
    return tuple(guests)


def check_dim(prompt: PicturePrompt, adapter: IPAdapter, encoder: ImageEncoder) -> None:
    vision, config = encoder.config, adapter.config
    made = vision.projection_dim if config.kind == "linear" else vision.width
    if made != config.clip_dim:
        raise CheckpointError(
            f"the IP-Adapter {quoted(prompt.model)} reads pictures as {config.clip_dim} numbers, the encoder "
            f"{quoted(prompt.encoder)} gives {made}; take the encoder it was trained with"
        )


def load_adapter(path: Path, model: Model) -> IPAdapter:
    with open_ip_adapter(path, unet=model.config.unet) as file:
        with torch.device("meta"):
            network = IPAdapter(file.config)
        network.load_state_dict(file.state_dict(dtype=model.unet_dtype), strict=True, assign=True)
    return network.requires_grad_(False).eval().to(model.unet_device)


def load_encoder(path: Path, model: Model) -> ImageEncoder:
    with open_vision(path) as file:
        with torch.device("meta"):
            network = ImageEncoder(file.config)
        network.load_state_dict(file.state_dict(dtype=model.unet_dtype), strict=True, assign=True)
    network.requires_grad_(False).eval().to(model.unet_device)
    use(network, model.plan.kernels.value)
    return network


def vision_pixels(image: Image.Image, size: int) -> Tensor:
    """As CLIP reads a picture: its shorter side `size` pixels (bicubic), the middle square, made even: 1 3
    size size."""
    image = image.convert("RGB")
    w, h = image.size
    # the longer side is cut to whole pixels, not rounded, as Hugging Face's processor does
    w, h = (size, max(size, int(size * h / w))) if w <= h else (max(size, int(size * w / h)), size)
    image = image.resize((w, h), Image.Resampling.BICUBIC)
    left, top = (w - size) // 2, (h - size) // 2
    pixels = np.array(image.crop((left, top, left + size, top + size))).astype(np.float32) / 255
    even = (pixels - np.array(MEAN, np.float32)) / np.array(STD, np.float32)
    return torch.from_numpy(even).permute(2, 0, 1)[None].contiguous()
