"""Tensors to pictures, and pictures to files that say how they were made."""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping
from pathlib import Path

import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from minisd.errors import ImageError


def to_image(pixels: Tensor) -> Image.Image:
    """[3, h, w] about -1 .. 1 -> 8-bit RGB. Rounds half to even, as numpy and diffusers do."""
    levels = ((pixels.float() / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8)
    return Image.fromarray(levels.permute(1, 2, 0).contiguous().cpu().numpy())


def save_png(image: Image.Image, path: str | os.PathLike[str], texts: Mapping[str, str]) -> Path:
    """Write a PNG with text chunks, whole or not at all: a temporary file beside it takes its place when
    complete.

    Raises ImageError if the folder is missing or cannot be written.
    """
    target = Path(path)
    info = PngInfo()
    for key, value in texts.items():
        info.add_text(key, value)  # tEXt where Latin-1 holds it, else iTXt
    part = target.parent / f".{target.name}.{secrets.token_hex(4)}.part"
    try:
        with open(part, "xb") as file:
            try:
                image.save(file, "PNG", pnginfo=info)
                file.flush()
                os.fsync(file.fileno())
                os.replace(part, target)
            except BaseException:
                part.unlink(missing_ok=True)
                raise
    except OSError as error:
        raise ImageError(f"cannot write {target}: {error.strerror or error}") from error
    return target
