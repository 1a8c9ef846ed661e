"""Tensors to pictures."""

from __future__ import annotations

import torch
from PIL import Image
from torch import Tensor


def to_image(pixels: Tensor) -> Image.Image:
    """[3, h, w] about -1 .. 1 -> 8-bit RGB. Rounds half to even, as numpy and diffusers do."""
    levels = ((pixels.float() / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8)
    return Image.fromarray(levels.permute(1, 2, 0).contiguous().cpu().numpy())
