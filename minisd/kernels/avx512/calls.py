"""The operations of `minisd.kernels` by the AVX-512 kernels: tensors in, pointers and strides out.

Structures mirror those of the sources field by field. Arguments are float32 or bfloat16 on a CPU; what lies
in memory otherwise than a kernel reads it is copied first.
"""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from minisd.kernels.avx512.build import library
from minisd.kernels.packed import linear

NAMES = {torch.float32: "f32", torch.bfloat16: "bf16"}


def fields(pointers: str, numbers: str, *more: tuple[str, type]) -> list[tuple[str, type]]:
    return [
        *((name, ctypes.c_void_p) for name in pointers.split()),
        *((name, ctypes.c_int64) for name in numbers.split()),
        *more,
    ]


class AttentionCall(ctypes.Structure):
    _fields_ = fields("q k v out", "b h n m d q_b q_n k_b k_n v_b v_n o_b o_n causal threads")


class NormCall(ctypes.Structure):
    _fields_ = fields("x weight bias out", "b n c groups silu threads", ("eps", ctypes.c_double))


class RowCall(ctypes.Structure):
    _fields_ = fields("x other weight bias sum out", "n d threads", ("eps", ctypes.c_double))


def run(name: str, dtype: torch.dtype, call: ctypes.Structure) -> None:
    getattr(library(), f"{name}_{NAMES[dtype]}")(ctypes.byref(call))


def rows_of(x: Tensor) -> Tensor:
    """x with its last axis in one piece."""
    return x if x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous()


def attention(q: Tensor, k: Tensor, v: Tensor, num_heads: int, *, causal: bool = False) -> Tensor:
    """q: b n (h d); k, v: b m (h d), read where a fused projection wrote them. Returns b n (h d)."""
    q, k, v = rows_of(q), rows_of(k), rows_of(v)
    (b, n, width), m = q.shape, k.shape[1]
    out = torch.empty(b, n, width, dtype=q.dtype)
    strides = [s for t in (q, k, v, out) for s in (t.stride(0), t.stride(1))]
    pointers = (t.data_ptr() for t in (q, k, v, out))
    sizes = b, num_heads, n, m, width // num_heads
    run("attention", q.dtype, AttentionCall(*pointers, *sizes, *strides, causal, torch.get_num_threads()))
    return out


def group_norm_silu(
    x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float, *, silu: bool = True
) -> Tensor:
    """b c h w -> b c h w, channels last."""
    x = x.contiguous(memory_format=torch.channels_last)
    out = torch.empty_like(x)
    b, c, height, width = x.shape
    pointers = (t.data_ptr() for t in (x, weight, bias, out))
    run(
        "group_norm",
        x.dtype,
        NormCall(*pointers, b, height * width, c, groups, silu, torch.get_num_threads(), eps),
    )
    return out


def layer_norm(
    x: Tensor, weight: Tensor, bias: Tensor, eps: float, *, residual: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """(x + residual, LayerNorm of it), ... d."""
    x = x.contiguous()
    other = None if residual is None else residual.contiguous()
    total = x if other is None else torch.empty_like(x)
    out, d = torch.empty_like(x), x.shape[-1]
    pointers = (t.data_ptr() if t is not None else None for t in (x, other, weight, bias, total, out))
    run("layer_norm", x.dtype, RowCall(*pointers, x.numel() // d, d, torch.get_num_threads(), eps))
    return total, out


def geglu(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """... m -> ... d, weight [2 d, m], packed or not: oneDNN's product, then one pass."""
    wide = linear(x, weight, bias).contiguous()
    d = wide.shape[-1] // 2
    out = torch.empty(*wide.shape[:-1], d, dtype=wide.dtype)
    pointers = wide.data_ptr(), None, None, None, None, out.data_ptr()
    run("geglu", wide.dtype, RowCall(*pointers, out.numel() // d, d, torch.get_num_threads(), 0.0))
    return out
