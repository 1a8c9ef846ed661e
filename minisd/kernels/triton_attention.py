"""Attention in Triton: flash attention forward (Dao 2023, arXiv:2307.08691) with a loop over keys, and the
form in which all keys of a text fit in one block.

Both read q, k, v where they lie, also as slices of a fused projection [b, n, 3 h d], and write b n (h d).
Head dims that are no power of two are two products: 40 = 32 + 8, 80 = 64 + 16, 160 = 128 + 32, so nothing is
padded in memory and little in the products. The head stride is the constexpr D: as a run-time number of 40
elements it would look unaligned to Triton, and loads would lose their width and the pipeline.

One program owns a tile of queries and walks the keys in a fixed order: no atomics, no split that depends on
the batch. Scores and sums are float32. exp2 with log2(e) folded into the scale.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from minisd.kernels.configs import Config, arch_of, cross_config, flash_config, known
from minisd.kernels.launch import launch

ONE_BLOCK = 160  # keys: 128 + 32, two chunks of text
LOG2_E = math.log2(math.e)


@triton.jit
def flash_kernel(
    Q,
    K,
    V,
    OUT,
    q_batch,
    q_row,
    k_batch,
    k_row,
    v_batch,
    v_row,
    o_batch,
    o_row,
    heads,
    n,
    m,
    scale,
    D: tl.constexpr,
    D0: tl.constexpr,
    D1: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    EVEN: tl.constexpr,
    CAUSAL: tl.constexpr,
    PRECISION: tl.constexpr,
):
    image = (tl.program_id(1) // heads).to(tl.int64)
    head = tl.program_id(1) % heads
    Q += image * q_batch + head * D
    K += image * k_batch + head * D
    V += image * v_batch + head * D
    OUT += image * o_batch + head * D
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    d0 = tl.arange(0, D0)
    d1 = D0 + tl.arange(0, D1 if D1 > 0 else 16)
    in_rows = rows[:, None] < n
    in_d0 = d0 < D
    in_d1 = d1 < D
    at_rows = rows.to(tl.int64)[:, None]
    q0 = tl.load(Q + at_rows * q_row + d0[None, :], mask=in_rows & in_d0[None, :], other=0.0)
    acc0 = tl.zeros([ROWS, D0], tl.float32)
    q1, acc1 = q0, acc0
    if D1 > 0:
        q1 = tl.load(Q + at_rows * q_row + d1[None, :], mask=in_rows & in_d1[None, :], other=0.0)
        acc1 = tl.zeros([ROWS, D1], tl.float32)
    highest = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    last = m
    if CAUSAL:
        last = tl.minimum(m, (tl.program_id(0) + 1) * ROWS)
    for start in range(0, last, COLUMNS):
        keys = start + tl.arange(0, COLUMNS)
        at_keys = keys.to(tl.int64)
        if EVEN and D0 <= D:
            k0 = tl.load(K + at_keys[None, :] * k_row + d0[:, None])
        else:
            k0 = tl.load(
                K + at_keys[None, :] * k_row + d0[:, None],
                mask=(keys[None, :] < m) & in_d0[:, None],
                other=0.0,
            )
        scores = tl.dot(q0, k0, input_precision=PRECISION)
        if D1 > 0:
            k1 = tl.load(
                K + at_keys[None, :] * k_row + d1[:, None],
                mask=(keys[None, :] < m) & in_d1[:, None],
                other=0.0,
            )
            scores = tl.dot(q1, k1, scores, input_precision=PRECISION)
        if not EVEN:
            scores = tl.where(keys[None, :] < m, scores, float("-inf"))
        if CAUSAL:
            scores = tl.where(keys[None, :] <= rows[:, None], scores, float("-inf"))
        higher = tl.maximum(highest, tl.max(scores, 1) * scale)
        weights = tl.math.exp2(scores * scale - higher[:, None])
        fade = tl.math.exp2(highest - higher)
        total = total * fade + tl.sum(weights, 1)
        highest = higher
        weights = weights.to(V.dtype.element_ty)
        if EVEN and D0 <= D:
            v0 = tl.load(V + at_keys[:, None] * v_row + d0[None, :])
        else:
            v0 = tl.load(
                V + at_keys[:, None] * v_row + d0[None, :],
                mask=(keys[:, None] < m) & in_d0[None, :],
                other=0.0,
            )
        acc0 = tl.dot(weights, v0, acc0 * fade[:, None], input_precision=PRECISION)
        if D1 > 0:
            v1 = tl.load(
                V + at_keys[:, None] * v_row + d1[None, :],
                mask=(keys[:, None] < m) & in_d1[None, :],
                other=0.0,
            )
            acc1 = tl.dot(weights, v1, acc1 * fade[:, None], input_precision=PRECISION)
    out = OUT + at_rows * o_row
    tl.store(
        out + d0[None, :], (acc0 / total[:, None]).to(OUT.dtype.element_ty), mask=in_rows & in_d0[None, :]
    )
    if D1 > 0:
        tl.store(
            out + d1[None, :], (acc1 / total[:, None]).to(OUT.dtype.element_ty), mask=in_rows & in_d1[None, :]
        )


@triton.jit
def cross_scores(
    q0, q1, K, k_row, m, keys, d0, d1, in_d0, in_d1, scale, TWO: tl.constexpr, PRECISION: tl.constexpr
):
    """scale q k^T for these keys; minus infinity where there is none."""
    at_keys = K + keys.to(tl.int64)[None, :] * k_row
    k0 = tl.load(at_keys + d0[:, None], mask=(keys[None, :] < m) & in_d0[:, None], other=0.0)
    scores = tl.dot(q0, k0, input_precision=PRECISION)
    if TWO:
        k1 = tl.load(at_keys + d1[:, None], mask=(keys[None, :] < m) & in_d1[:, None], other=0.0)
        scores = tl.dot(q1, k1, scores, input_precision=PRECISION)
    return tl.where(keys[None, :] < m, scores * scale, float("-inf"))


@triton.jit
def rows_of(V, v_row, m, keys, d, in_d):
    """The values of these keys and channels; 0 where there is none."""
    return tl.load(
        V + keys.to(tl.int64)[:, None] * v_row + d[None, :],
        mask=(keys[:, None] < m) & in_d[None, :],
        other=0.0,
    )


@triton.jit
def cross_kernel(
    Q,
    K,
    V,
    OUT,
    q_batch,
    q_row,
    k_batch,
    k_row,
    v_batch,
    v_row,
    o_batch,
    o_row,
    heads,
    n,
    m,
    scale,
    D: tl.constexpr,
    D0: tl.constexpr,
    D1: tl.constexpr,
    ROWS: tl.constexpr,
    FIRST: tl.constexpr,
    REST: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """All keys at once, FIRST and then REST of them: one maximum, one sum, no rescaling."""
    image = (tl.program_id(1) // heads).to(tl.int64)
    head = tl.program_id(1) % heads
    Q += image * q_batch + head * D
    K += image * k_batch + head * D
    V += image * v_batch + head * D
    OUT += image * o_batch + head * D
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    d0 = tl.arange(0, D0)
    d1 = D0 + tl.arange(0, D1 if D1 > 0 else 16)
    in_rows = rows[:, None] < n
    in_d0 = d0 < D
    in_d1 = d1 < D
    at_rows = rows.to(tl.int64)[:, None]
    q0 = tl.load(Q + at_rows * q_row + d0[None, :], mask=in_rows & in_d0[None, :], other=0.0)
    q1 = q0
    if D1 > 0:
        q1 = tl.load(Q + at_rows * q_row + d1[None, :], mask=in_rows & in_d1[None, :], other=0.0)
    keys = tl.arange(0, FIRST)
    more = FIRST + tl.arange(0, REST if REST > 0 else 16)
    weights = cross_scores(q0, q1, K, k_row, m, keys, d0, d1, in_d0, in_d1, scale, D1 > 0, PRECISION)
    highest = tl.maximum(tl.full([ROWS], float("-inf"), tl.float32), tl.max(weights, 1))
    others = weights
    if REST > 0:
        others = cross_scores(q0, q1, K, k_row, m, more, d0, d1, in_d0, in_d1, scale, D1 > 0, PRECISION)
        highest = tl.maximum(highest, tl.max(others, 1))
        others = tl.math.exp2(others - highest[:, None])
    weights = tl.math.exp2(weights - highest[:, None])
    total = tl.zeros([ROWS], tl.float32) + tl.sum(weights, 1)
    if REST > 0:
        total = total + tl.sum(others, 1)
        others = others.to(V.dtype.element_ty)
    weights = weights.to(V.dtype.element_ty)
    out = OUT + at_rows * o_row
    acc0 = tl.dot(weights, rows_of(V, v_row, m, keys, d0, in_d0), input_precision=PRECISION)
    if REST > 0:
        acc0 = tl.dot(others, rows_of(V, v_row, m, more, d0, in_d0), acc0, input_precision=PRECISION)
    tl.store(
        out + d0[None, :], (acc0 / total[:, None]).to(OUT.dtype.element_ty), mask=in_rows & in_d0[None, :]
    )
    if D1 > 0:
        acc1 = tl.dot(weights, rows_of(V, v_row, m, keys, d1, in_d1), input_precision=PRECISION)
        if REST > 0:
            acc1 = tl.dot(others, rows_of(V, v_row, m, more, d1, in_d1), acc1, input_precision=PRECISION)
        tl.store(
            out + d1[None, :], (acc1 / total[:, None]).to(OUT.dtype.element_ty), mask=in_rows & in_d1[None, :]
        )


def power_of_two(n: int) -> int:
    """The smallest power of two that is at least n."""
    return 1 << max(0, n - 1).bit_length()


def split(d: int) -> tuple[int, int]:
    """(first, rest) block of channels: 40 -> 32, 16; 64 -> 64, 0; 160 -> 128, 32. At least 16 each."""
    if d <= 16:
        return 16, 0
    first = 1 << (d.bit_length() - 1)
    return first, max(16, power_of_two(d - first)) if d > first else 0


def precision(dtype: torch.dtype) -> str:
    """float32 in full: the default would round it to TF32."""
    return "ieee" if dtype == torch.float32 else "tf32"


def packed(t: Tensor) -> Tensor:
    """t with adjacent channels, as it nearly always comes; rows and images may lie anywhere."""
    return t if t.stride(-1) == 1 else t.contiguous()


def strides(*tensors: Tensor) -> tuple[int, ...]:
    """From image to image and from row to row, of each."""
    return tuple(t.stride(axis) for t in tensors for axis in (0, 1))


def flash(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    num_heads: int,
    *,
    causal: bool = False,
    arch: str | None = None,
    config: Config | None = None,
) -> Tensor:
    """q: b n (h d); k, v: b m (h d), any strides of b and n. Returns b n (h d).

    arch: whose table of tiles; None asks the device. config: instead of the table's (`minisd kernels bench`).
    """
    q, k, v = packed(q), packed(k), packed(v)
    (b, n, width), m = q.shape, k.shape[1]
    d = width // num_heads
    first, rest = split(d)
    row = known(arch_of(q.device) if arch is None else arch)
    c = config or flash_config(row, d, m, q.element_size())
    out = torch.empty((b, n, width), dtype=q.dtype, device=q.device)
    grid = (triton.cdiv(n, c.rows), b * num_heads)
    launch(
        flash_kernel,
        grid,
        (q, k, v, out, *strides(q, k, v, out), num_heads, n, m, LOG2_E / math.sqrt(d)),
        {
            "D": d,
            "D0": first,
            "D1": rest,
            "ROWS": c.rows,
            "COLUMNS": c.columns,
            "EVEN": m % c.columns == 0,
            "CAUSAL": causal,
            "PRECISION": precision(q.dtype),
        },
        warps=c.warps,
        stages=c.stages,
    )
    return out


def cross(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    num_heads: int,
    *,
    causal: bool = False,
    arch: str | None = None,
    config: Config | None = None,
) -> Tensor:
    """As `flash`, for at most `ONE_BLOCK` keys without a loop; more of them, and causal ones, loop."""
    if causal or k.shape[1] > ONE_BLOCK:
        return flash(q, k, v, num_heads, causal=causal, arch=arch, config=config)
    q, k, v = packed(q), packed(k), packed(v)
    (b, n, width), m = q.shape, k.shape[1]
    d = width // num_heads
    first, rest = split(d)
    row = known(arch_of(q.device) if arch is None else arch)
    c = config or cross_config(row, d, q.element_size())
    block = min(128, max(16, power_of_two(m)))
    out = torch.empty((b, n, width), dtype=q.dtype, device=q.device)
    grid = (triton.cdiv(n, c.rows), b * num_heads)
    launch(
        cross_kernel,
        grid,
        (q, k, v, out, *strides(q, k, v, out), num_heads, n, m, LOG2_E / math.sqrt(d)),
        {
            "D": d,
            "D0": first,
            "D1": rest,
            "ROWS": c.rows,
            "FIRST": block,
            "REST": 32 if m > 128 else 0,
            "PRECISION": precision(q.dtype),
        },
        warps=c.warps,
        stages=c.stages,
    )
    return out
