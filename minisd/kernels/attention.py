"""Attention, one call for every site: self, cross, causal (text), and the VAE's single wide head.

    attention(q, k, v, num_heads, causal=..., implementation="sdpa")       # b n (h d), b m (h d) -> b n (h d)

Heads stay packed in the last axis, because that is what the projections write and what the next projection
reads; splitting them is the implementation's business. What is asked for by name runs or raises with the
reason. Nothing in torch is patched.
"""

from __future__ import annotations

from torch import Tensor

from minisd.kernels.configs import arch_of
from minisd.kernels.registry import Implementation, Site
from minisd.kernels.table import REGISTRY

ATTENTIONS = ("self_attention", "cross_attention", "causal_attention", "wide_attention")
WIDE = 256  # channels of a single head: beyond, only the VAE


def attention_op(n: int, m: int, num_heads: int, head_dim: int, causal: bool) -> str:
    """Which of `ATTENTIONS` a call is."""
    if causal:
        return "causal_attention"
    if num_heads == 1 and head_dim > WIDE:
        return "wide_attention"
    return "self_attention" if n == m else "cross_attention"


def attention_site(q: Tensor, k: Tensor, num_heads: int, causal: bool) -> Site:
    """The site of a call with these tensors."""
    (b, n, width), m = q.shape, k.shape[1]
    d = width // num_heads
    op = attention_op(n, m, num_heads, d, causal)
    return Site(op, q.dtype, q.device.type, arch_of(q.device), b=b, h=num_heads, n=n, m=m, d=d)


def why_not(implementation: str, site: Site | None = None) -> str | None:
    """The reason why this implementation cannot be used (at this site, or anywhere), or None if it can."""
    known = sorted({name for op in ATTENTIONS for name in REGISTRY.names(op)})
    if implementation not in known:
        return f"there is no attention {implementation!r}; known are {', '.join(known)}"
    return None if site is None else REGISTRY.find(site.op, implementation).why_not(site)


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    num_heads: int,
    *,
    causal: bool = False,
    implementation: str | Implementation = "sdpa",
) -> Tensor:
    """softmax(q k^T / sqrt(d)) v per head.

    q: b n (h d); k, v: b m (h d), any dtype. Returns b n (h d). Raises ValueError for an unknown
    implementation, or one whose conditions this call does not meet.
    """
    if isinstance(implementation, Implementation):
        one = implementation
    else:
        reason = why_not(implementation)
        if reason is not None:
            raise ValueError(reason)
        op = attention_op(q.shape[1], k.shape[1], num_heads, q.shape[-1] // num_heads, causal)
        one = REGISTRY.find(op, implementation)
    if one.conditions:
        site = attention_site(q, k, num_heads, causal)
        reason = one.why_not(site)
        if reason is not None:
            raise ValueError(f"{site}: {reason}")
    out = one.run(q, k, v, num_heads, causal=causal)
    assert isinstance(out, Tensor), "an attention gives one tensor"
    return out
