"""Empty tensors in place of results: the shape and dtype that an operation of our networks gives.

torch's own meta device knows them as well, but most of its rules are written in Python, and the first of them
to run imports sympy and the compiler: 170 MB and two seconds (torch 2.13), in a process that counts memory
because there is little of it. What has no rule here is asked of torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import zip_longest
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def like(x: Tensor, *_: object, **__: object) -> Tensor:
    """Element by element, and norms."""
    return x.new_empty(x.shape)


def silu(x: Tensor, inplace: bool = False) -> Tensor:
    return x if inplace else x.new_empty(x.shape)


def broadcast(a: Tensor, b: Tensor | float) -> Tensor:
    """Two operands of any shapes that go together, or a tensor and a number."""
    if not isinstance(b, Tensor):
        return a.new_empty(a.shape)
    sides = zip_longest(reversed(a.shape), reversed(b.shape), fillvalue=1)  # torch.broadcast_shapes: sympy
    shape = [n if m == 1 else m for n, m in sides][::-1]
    return a.new_empty(shape, dtype=torch.promote_types(a.dtype, b.dtype))


def arange(*ends: int, dtype: torch.dtype = torch.int64, device: torch.device | str | None = None) -> Tensor:
    """Of whole numbers."""
    return torch.empty(len(range(*ends)), dtype=dtype, device=device)


def cat(parts: Sequence[Tensor], dim: int = 0) -> Tensor:
    first, dim = parts[0], dim % parts[0].ndim
    return first.new_empty(*first.shape[:dim], sum(p.shape[dim] for p in parts), *first.shape[dim + 1 :])


def interpolate(
    x: Tensor, size: Sequence[int] | None = None, scale_factor: float = 1.0, **_: object
) -> Tensor:
    return x.new_empty(*x.shape[:2], *(size or [int(n * scale_factor) for n in x.shape[2:]]))


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return x.new_empty(*x.shape[:-1], weight.shape[0])


def embedding(rows: Tensor, weight: Tensor, *_: object, **__: object) -> Tensor:
    return weight.new_empty(*rows.shape, weight.shape[1])


def attention(q: Tensor, k: Tensor, v: Tensor, *_: object, **__: object) -> Tensor:
    """As a fused kernel gives it, b h n d over memory in the order b n h d."""
    b, h, n, d = q.shape
    return q.new_empty(b, n, h, d).transpose(1, 2)


def conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Sequence[int] = (1, 1),
    padding: Sequence[int] = (0, 0),
    dilation: Sequence[int] = (1, 1),
    *_: object,
) -> Tensor:
    """b c h w."""
    sides = [
        (n + 2 * p - d * (k - 1) - 1) // s + 1
        for n, k, s, p, d in zip(x.shape[2:], weight.shape[2:], stride, padding, dilation, strict=True)
    ]
    return x.new_empty(x.shape[0], weight.shape[0], *sides)


RULES: Mapping[Any, Callable[..., Tensor]] = {
    F.scaled_dot_product_attention: attention,
    torch.conv2d: conv2d,
    torch.cat: cat,
    torch.arange: arange,
    F.linear: linear,
    F.embedding: embedding,
    F.interpolate: interpolate,
    F.group_norm: like,
    F.layer_norm: like,
    F.silu: silu,
    F.gelu: like,
    torch.sigmoid: like,
    Tensor.add: broadcast,
    Tensor.sub: broadcast,
    Tensor.mul: broadcast,
    Tensor.div: broadcast,
    Tensor.sin: like,
    Tensor.cos: like,
    Tensor.exp: like,
}
