"""The float64 truth of every operation: as small and slow as the formula in the paper.

Tests and the laboratory hold each implementation against these; nothing at run time calls them unless asked
for by name. Results come back in the dtype of the first argument.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor


def attention(q: Tensor, k: Tensor, v: Tensor, num_heads: int, *, causal: bool = False) -> Tensor:
    """softmax(q k^T / sqrt(d)) v per head (Vaswani et al. 2017, eq. 1), computed in float64.

    q: b n (h d); k, v: b m (h d). Returns b n (h d) in q's dtype. `causal` masks keys after the query's own
    position.
    """
    heads = (rearrange(t.double(), "b n (h d) -> b h n d", h=num_heads) for t in (q, k, v))
    qh, kh, vh = heads
    scores = qh @ kh.transpose(-1, -2) / qh.shape[-1] ** 0.5  # b h n m
    if causal:
        later = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).triu(1)
        scores = scores.masked_fill(later, float("-inf"))
    return rearrange(scores.softmax(-1) @ vh, "b h n d -> b n (h d)").to(q.dtype)


def group_norm_silu(
    x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float, *, silu: bool = True
) -> Tensor:
    """silu(GroupNorm(x)) (Wu and He 2018, arXiv:1803.08494): x b c h w; without `silu` the norm alone."""
    grouped = rearrange(x.double(), "b (g c) h w -> b g (c h w)", g=groups)
    centred = grouped - grouped.mean(-1, keepdim=True)
    normed = centred / (centred.square().mean(-1, keepdim=True) + eps).sqrt()
    out = normed.view(x.shape) * weight.double()[:, None, None] + bias.double()[:, None, None]
    return (out * torch.sigmoid(out) if silu else out).to(x.dtype)


def layer_norm(
    x: Tensor, weight: Tensor, bias: Tensor, eps: float, *, residual: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """(x + residual, LayerNorm of it) over the last axis (Ba et al. 2016, arXiv:1607.06450): x ... d."""
    total = x.double() if residual is None else x.double() + residual.double()
    centred = total - total.mean(-1, keepdim=True)
    normed = centred / (centred.square().mean(-1, keepdim=True) + eps).sqrt()
    return total.to(x.dtype), (normed * weight.double() + bias.double()).to(x.dtype)


def geglu(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """value * gelu(gate) (Shazeer 2020, arXiv:2002.05202): x ... m -> ... d.

    weight: [2 d, m] = [value; gate]; bias [2 d].
    """
    value, gate = (x.double() @ weight.double().T + bias.double()).chunk(2, dim=-1)
    return (value * 0.5 * gate * (1 + torch.erf(gate / 2**0.5))).to(x.dtype)


def guidance(
    cond: Tensor, uncond: Tensor, x: Tensor, scale: float, keep: float, add: float, ratio: float
) -> tuple[Tensor, Tensor]:
    """(denoised, x after one Euler step): guided = uncond + scale (cond - uncond), denoised = keep x + add
    guided (`samplers/scaling.py`), step = ratio x + (1 - ratio) denoised, ratio = sigma_next / sigma."""
    guided = uncond.double() + scale * (cond.double() - uncond.double())
    denoised = keep * x.double() + add * guided
    return denoised.to(x.dtype), (ratio * x.double() + (1 - ratio) * denoised).to(x.dtype)


def upsample_conv(x: Tensor, weight: Tensor, bias: Tensor, folded: Tensor | None = None) -> Tensor:
    """3x3 convolution of the picture with every pixel doubled: b m h w -> b d 2h 2w, zeros around it."""
    doubled = x.double().repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    return F.conv2d(doubled, weight.double(), bias.double(), padding=1).to(x.dtype)


def quantised_linear(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None = None) -> Tensor:
    """x (scale weight)^T + bias: x ... m, weight int8 [d, m], scale [d] -> ... d."""
    out = x.double() @ (weight.double() * scale.double()[:, None]).T
    return (out if bias is None else out + bias.double()).to(x.dtype)
