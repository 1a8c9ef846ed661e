"""Two kernels over plain rows in Triton: the softmax inside the VAE's attention, and guidance with its step.

The VAE's single head is 512 wide: a flash kernel would fill the registers with its sums alone. Two products
by the vendor's library with a softmax of its rows between them, a slice of queries at a time so that the
scores stay in the cache, need neither.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from minisd.kernels.launch import launch

SLICE = 1024  # queries: 16384 float32 scores of each are 64 MiB
BLOCK = 1024  # numbers that one program holds at a time


@triton.jit
def softmax_kernel(S, P, m, s_row, p_row, scale, BLOCK: tl.constexpr):
    """softmax(scale * row) of float32 scores, rounded once: one pass for maximum and sum, one to write."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    highest = tl.full([BLOCK], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK], tl.float32)
    for start in range(0, m, BLOCK):
        inside = start + column < m
        s = tl.load(S + row * s_row + start + column, mask=inside, other=float("-inf")) * scale
        higher = tl.maximum(highest, s)
        # a lane that has seen nothing has -inf twice, whose difference is no number
        fade = tl.where(highest == float("-inf"), 0.0, tl.math.exp2(highest - higher))
        term = tl.where(inside, tl.math.exp2(s - higher), 0.0)
        total = total * fade + term
        highest = higher
    top = tl.max(highest, 0)
    total = tl.sum(tl.where(highest == float("-inf"), 0.0, total * tl.math.exp2(highest - top)), 0)
    for start in range(0, m, BLOCK):
        inside = start + column < m
        s = tl.load(S + row * s_row + start + column, mask=inside, other=float("-inf")) * scale
        p = tl.math.exp2(s - top) / total
        tl.store(P + row * p_row + start + column, p.to(P.dtype.element_ty), mask=inside)


@triton.jit
def guidance_kernel(COND, UNCOND, X, DENOISED, STEPPED, n, scale, keep, add, ratio, BLOCK: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < n
    cond = tl.load(COND + at, mask=inside, other=0.0).to(tl.float32)
    uncond = tl.load(UNCOND + at, mask=inside, other=0.0).to(tl.float32)
    x = tl.load(X + at, mask=inside, other=0.0).to(tl.float32)
    denoised = keep * x + add * (uncond + scale * (cond - uncond))
    tl.store(DENOISED + at, denoised.to(DENOISED.dtype.element_ty), mask=inside)
    stepped = ratio * x + (1.0 - ratio) * denoised
    tl.store(STEPPED + at, stepped.to(STEPPED.dtype.element_ty), mask=inside)


def softmax(scores: Tensor, scale: float, dtype: torch.dtype) -> Tensor:
    """softmax(scale * scores) of float32 rows [n, m], in dtype."""
    n, m = scores.shape
    out = torch.empty((n, m), dtype=dtype, device=scores.device)
    launch(
        softmax_kernel,
        (n,),
        (scores, out, m, scores.stride(0), out.stride(0), scale * 1.4426950408889634),
        {"BLOCK": BLOCK},
        warps=4,
    )
    return out


def product(a: Tensor, b: Tensor) -> Tensor:
    """a b as float32: scores rounded to bfloat16 would cost 1 % of the result."""
    if a.device.type == "cuda" and a.dtype != torch.float32:
        return torch.mm(a, b, out_dtype=torch.float32)
    return a.float() @ b.float()


def wide_attention(
    q: Tensor, k: Tensor, v: Tensor, num_heads: int, *, causal: bool = False, rows: int = SLICE
) -> Tensor:
    """One head, not causal: q b n d; k, v: b m d. Returns b n d."""
    assert num_heads == 1 and not causal, "the conditions say so"
    out = torch.empty_like(q, memory_format=torch.contiguous_format)
    for image in range(len(q)):
        keys = k[image].T
        for start in range(0, q.shape[1], rows):
            scores = product(q[image, start : start + rows], keys)
            weights = softmax(scores, q.shape[-1] ** -0.5, v.dtype)
            torch.mm(weights, v[image], out=out[image, start : start + rows])
    return out


def guidance(
    cond: Tensor, uncond: Tensor, x: Tensor, scale: float, keep: float, add: float, ratio: float
) -> tuple[Tensor, Tensor]:
    """(denoised, x after one Euler step), in x's dtype."""
    cond, uncond, x = (t.contiguous() for t in (cond, uncond, x))
    denoised, stepped = torch.empty_like(x), torch.empty_like(x)
    n = x.numel()
    launch(
        guidance_kernel,
        (triton.cdiv(n, BLOCK),),
        (cond, uncond, x, denoised, stepped, n, scale, keep, add, ratio),
        {"BLOCK": BLOCK},
        warps=4,
    )
    return denoised, stepped
