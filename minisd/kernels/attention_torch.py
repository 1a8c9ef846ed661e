"""Attention by torch: its own choice, each of its backends by name, and plain softmax over slices.

The backends are called as the operators they are; torch's context manager would switch flags of the whole
program. q: b n (h d); k, v: b m (h d); returns b n (h d).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

FEW = 4  # queries: with fewer, products on a CPU take a path whose float32 bits depend on the threads

Heads = Callable[[Tensor, Tensor, Tensor, bool], Tensor]  # b h n d, b h m d, b h m d, causal -> b h n d


def by_heads(function: Heads, q: Tensor, k: Tensor, v: Tensor, num_heads: int, causal: bool) -> Tensor:
    """function on views b h n d; its result as b n (h d)."""
    q, k, v = (t.unflatten(-1, (num_heads, -1)).transpose(1, 2) for t in (q, k, v))
    return function(q, k, v, causal).transpose(1, 2).flatten(2)


def sdpa(q: Tensor, k: Tensor, v: Tensor, num_heads: int, *, causal: bool = False) -> Tensor:
    """torch's fused kernel for this device and dtype."""
    q, k, v = (
        t.unflatten(-1, (num_heads, -1)).transpose(1, 2) for t in (q, k, v)
    )  # b n (h d) -> b h n d, a view
    n = q.shape[2]
    if n < FEW and not causal and q.device.type == "cpu":  # more queries, which nobody hears
        q = F.pad(q, (0, 0, 0, FEW - n))
    out = F.scaled_dot_product_attention(q, k, v, is_causal=causal)[:, :, :n]
    return out.transpose(1, 2).flatten(2)  # b h n d -> b n (h d)


def flash(q: Tensor, k: Tensor, v: Tensor, num_heads: int, *, causal: bool = False) -> Tensor:
    """FlashAttention as torch carries it (Dao 2023, arXiv:2307.08691), or its form for a CPU."""
    ops = torch.ops.aten
    op = (
        ops._scaled_dot_product_flash_attention_for_cpu
        if q.device.type == "cpu"
        else ops._scaled_dot_product_flash_attention
    )
    return by_heads(lambda q, k, v, c: op(q, k, v, is_causal=c)[0], q, k, v, num_heads, causal)


def cudnn(q: Tensor, k: Tensor, v: Tensor, num_heads: int, *, causal: bool = False) -> Tensor:
    """cuDNN's attention."""
    op = torch.ops.aten._scaled_dot_product_cudnn_attention
    return by_heads(lambda q, k, v, c: op(q, k, v, None, False, 0.0, c)[0], q, k, v, num_heads, causal)


def efficient(q: Tensor, k: Tensor, v: Tensor, num_heads: int, *, causal: bool = False) -> Tensor:
    """The memory-efficient kernel (Rabe and Staats 2021, arXiv:2112.05682; xFormers)."""
    op = torch.ops.aten._scaled_dot_product_efficient_attention
    return by_heads(lambda q, k, v, c: op(q, k, v, None, False, 0.0, c)[0], q, k, v, num_heads, causal)


def math(q: Tensor, k: Tensor, v: Tensor, num_heads: int, *, causal: bool = False) -> Tensor:
    """torch's two products with a softmax between them; all scores at once."""
    op = torch.ops.aten._scaled_dot_product_attention_math
    return by_heads(lambda q, k, v, c: op(q, k, v, is_causal=c)[0], q, k, v, num_heads, causal)


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


def chunked(
    q: Tensor, k: Tensor, v: Tensor, num_heads: int, *, causal: bool = False, rows: int = 256
) -> Tensor:
    """Two products of bfloat16 around a softmax, one image, one head and `rows` queries at a time, so that
    scores stay in the CPU's cache. Approximate: scores are rounded to bfloat16 before the softmax, which a
    fused kernel does not.

    The mean key is taken away first (Zhang et al. 2024, arXiv:2410.02367, section 4.2): it moves all scores
    of a query alike, so softmax gives the same, and scores that are smaller are rounded less.
    """
    if causal:
        raise ValueError("chunked attends to all tokens; take sdpa or sliced for a text")
    out, d = torch.empty_like(q), q.shape[-1] // num_heads
    for image in range(len(q)):
        for columns in (slice(start, start + d) for start in range(0, q.shape[-1], d)):
            keys = k[image, :, columns].float()
            keys = ((keys - keys.mean(dim=0)) * d**-0.5).to(k.dtype).t()  # d m, a view
            values = F.pad(v[image, :, columns], (0, -d % 16))  # widths that oneDNN multiplies whole
            for start in range(0, q.shape[1], rows):
                weights = (q[image, start : start + rows, columns] @ keys).softmax(-1)
                out[image, start : start + rows, columns] = (weights @ values)[:, :d]
    return out
