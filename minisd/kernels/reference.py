"""The float64 truth of every operation: as small and slow as the formula in the paper.

Tests hold each implementation against these; nothing at run time calls them unless asked for by name.
"""

from __future__ import annotations

import torch
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
