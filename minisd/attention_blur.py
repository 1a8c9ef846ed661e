"""The worse picture of self-attention guidance (SAG): blurred where the network looks.

Paper: Hong et al. 2023 (arXiv:2210.00939), eq. 12 and 13. `denoiser.py` asks the network about it.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def attention_received(q: Tensor, k: Tensor, num_heads: int) -> Tensor:
    """How much attention each token receives, summed over those who look and averaged over heads: b n."""
    q, k = (t.unflatten(-1, (num_heads, -1)).transpose(1, 2).float() for t in (q, k))
    return (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(-1).mean(1).sum(1)


def degraded(picture: Tensor, received: Tensor, blur: float) -> Tensor:
    """picture [b c h w], blurred where a token receives more than its share of attention (SAG, eq. 12 and
    13)."""
    h, w = picture.shape[-2:]
    # the middle block's map has the picture's proportions
    scale = (h * w / received.shape[1]) ** 0.5
    rows = max(1, -(-h // round(scale)))
    mask = (received > 1.0).to(picture).view(len(picture), 1, rows, -1)
    mask = F.interpolate(mask, size=(h, w), mode="nearest")
    return gaussian_blur(picture, blur) * mask + picture * (1 - mask)


def gaussian_blur(x: Tensor, sigma: float, size: int = 9) -> Tensor:
    """Each channel convolved with a Gaussian of `size` taps, mirrored at the borders."""
    taps = torch.arange(size, dtype=x.dtype, device=x.device) - (size - 1) / 2
    kernel = torch.exp(-0.5 * (taps / sigma) ** 2)
    kernel = kernel / kernel.sum()
    channels, pad = x.shape[1], size // 2
    mode = "reflect" if min(x.shape[-2:]) > pad else "replicate"
    x = F.pad(x, (pad, pad, pad, pad), mode=mode)
    x = F.conv2d(x, kernel.expand(channels, 1, 1, size), groups=channels)
    return F.conv2d(x, kernel[:, None].expand(channels, 1, size, 1), groups=channels)
