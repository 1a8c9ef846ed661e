"""Attention, one call for every site: self, cross, causal (text), and the VAE's single wide head.

    attention(q, k, v, num_heads, causal=..., implementation="sdpa")       # b n (h d), b m (h d) -> b n (h d)

Heads stay packed in the last axis, because that is what the projections write and what the next projection
reads; splitting them is the implementation's business. `IMPLEMENTATIONS` maps a name to a function; what is
asked for by name runs or raises with the reason that `why_not` gives. Nothing in torch is patched.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from minisd.kernels import reference

AttentionFunction = Callable[..., Tensor]


def sdpa(q: Tensor, k: Tensor, v: Tensor, num_heads: int, *, causal: bool = False) -> Tensor:
    """torch's fused kernel for this device and dtype."""
    q, k, v = (
        t.unflatten(-1, (num_heads, -1)).transpose(1, 2) for t in (q, k, v)
    )  # b n (h d) -> b h n d, a view
    out = F.scaled_dot_product_attention(q, k, v, is_causal=causal)
    return out.transpose(1, 2).flatten(2)  # b h n d -> b n (h d)


def sliced(
    q: Tensor, k: Tensor, v: Tensor, num_heads: int, *, causal: bool = False, rows: int = 512
) -> Tensor:
    """Plain softmax(q k^T) v over `rows` queries at a time: memory stays at rows x m scores per head."""
    n, m = q.shape[1], k.shape[1]
    q, k, v = (rearrange(t, "b n (h d) -> b h n d", h=num_heads) for t in (q, k, v))
    q = q * q.shape[-1] ** -0.5
    parts = []
    for start in range(0, n, rows):
        scores = q[:, :, start : start + rows] @ k.transpose(-1, -2)  # b h rows m
        if causal:
            query = torch.arange(start, start + scores.shape[-2], device=q.device)
            scores = scores.masked_fill(torch.arange(m, device=q.device) > query[:, None], float("-inf"))
        # softmax in float32: exponentials of fp16 scores overflow, and bf16 sums lose the small terms
        parts.append(
            scores.softmax(-1, dtype=torch.promote_types(scores.dtype, torch.float32)).to(v.dtype) @ v
        )
    return rearrange(torch.cat(parts, 2), "b h n d -> b n (h d)")


IMPLEMENTATIONS: dict[str, AttentionFunction] = {
    "sdpa": sdpa,
    "sliced": sliced,
    "reference": reference.attention,
}


def why_not(implementation: str) -> str | None:
    """The reason why this implementation cannot be used, or None if it can."""
    if implementation in IMPLEMENTATIONS:
        return None
    return f"there is no attention {implementation!r}; known are {', '.join(sorted(IMPLEMENTATIONS))}"


def attention(
    q: Tensor, k: Tensor, v: Tensor, num_heads: int, *, causal: bool = False, implementation: str = "sdpa"
) -> Tensor:
    """softmax(q k^T / sqrt(d)) v per head.

    q: b n (h d); k, v: b m (h d), any dtype. Returns b n (h d). Raises ValueError for an unknown
    implementation.
    """
    reason = why_not(implementation)
    if reason is not None:
        raise ValueError(reason)
    return IMPLEMENTATIONS[implementation](q, k, v, num_heads, causal=causal)
