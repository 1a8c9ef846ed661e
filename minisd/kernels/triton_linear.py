"""Products with something of their own at the end, in Triton: GEGLU writes value * gelu(gate) without the
wide row in memory, and int8 weights become numbers on their way into the product.

One program owns one tile of the result and walks the inner axis in a fixed order; sums are float32.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from minisd.kernels.configs import GEGLU, LINEAR, Config, arch_of, known
from minisd.kernels.launch import launch
from minisd.kernels.triton_attention import precision


@triton.jit
def geglu_kernel(
    X,
    W,
    B,
    Y,
    n,
    d,
    m,
    x_row,
    w_row,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    PRECISION: tl.constexpr,
):
    rows = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inner = tl.arange(0, DEPTH)
    in_rows, in_columns = rows[:, None] < n, columns[None, :] < d
    at_x = X + rows[:, None] * x_row + inner[None, :]
    at_w = W + columns.to(tl.int64)[None, :] * w_row + inner[:, None]
    gates = d.to(tl.int64) * w_row  # from the value rows of the weight to its gate rows
    value = tl.zeros([ROWS, COLUMNS], tl.float32)
    gate = tl.zeros([ROWS, COLUMNS], tl.float32)
    for start in range(0, m, DEPTH):
        left = inner < m - start
        x = tl.load(at_x + start, mask=in_rows & left[None, :], other=0.0)
        wide = in_columns & left[:, None]
        value = tl.dot(x, tl.load(at_w + start, mask=wide, other=0.0), value, input_precision=PRECISION)
        gate = tl.dot(x, tl.load(at_w + gates + start, mask=wide, other=0.0), gate, input_precision=PRECISION)
    value += tl.load(B + columns, mask=columns < d, other=0.0).to(tl.float32)[None, :]
    gate += tl.load(B + d + columns, mask=columns < d, other=0.0).to(tl.float32)[None, :]
    y = value * (0.5 * gate * (1.0 + tl.math.erf(gate * 0.7071067811865476)))
    at = Y + rows[:, None] * d + columns[None, :]
    tl.store(at, y.to(Y.dtype.element_ty), mask=in_rows & in_columns)


@triton.jit
def int8_kernel(
    X,
    W,
    S,
    B,
    Y,
    n,
    d,
    m,
    x_row,
    w_row,
    BIAS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    PRECISION: tl.constexpr,
):
    rows = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inner = tl.arange(0, DEPTH)
    in_rows, in_columns = rows[:, None] < n, columns[None, :] < d
    at_x = X + rows[:, None] * x_row + inner[None, :]
    at_w = W + columns.to(tl.int64)[None, :] * w_row + inner[:, None]
    total = tl.zeros([ROWS, COLUMNS], tl.float32)
    for start in range(0, m, DEPTH):
        left = inner < m - start
        x = tl.load(at_x + start, mask=in_rows & left[None, :], other=0.0)
        w = tl.load(at_w + start, mask=in_columns & left[:, None], other=0)
        total = tl.dot(x, w.to(tl.float32).to(x.dtype), total, input_precision=PRECISION)  # exact
    y = total * tl.load(S + columns, mask=columns < d, other=0.0).to(tl.float32)[None, :]
    if BIAS:
        y += tl.load(B + columns, mask=columns < d, other=0.0).to(tl.float32)[None, :]
    at = Y + rows[:, None] * d + columns[None, :]
    tl.store(at, y.to(Y.dtype.element_ty), mask=in_rows & in_columns)


def rows_of(x: Tensor) -> Tensor:
    """x as rows of adjacent numbers."""
    rows = x.reshape(-1, x.shape[-1])
    return rows if rows.stride(-1) == 1 else rows.contiguous()


def tiles(table: dict[str, Config], arch: str | None, x: Tensor) -> Config:
    """float32 takes twice the shared memory: half the columns and depth."""
    config = table[known(arch_of(x.device) if arch is None else arch)]
    if x.element_size() < 4:
        return config
    return Config(64, 32, config.warps, min(config.stages, 2), depth=32)


def geglu(
    x: Tensor, weight: Tensor, bias: Tensor, *, arch: str | None = None, config: Config | None = None
) -> Tensor:
    """... m -> ... d, weight [2 d, m] = [value; gate]."""
    rows, d = rows_of(x), len(weight) // 2
    out = torch.empty((len(rows), d), dtype=x.dtype, device=x.device)
    c = config or tiles(GEGLU, arch, x)
    launch(
        geglu_kernel,
        (triton.cdiv(len(rows), c.rows), triton.cdiv(d, c.columns)),
        (rows, weight, bias, out, len(rows), d, x.shape[-1], rows.stride(0), weight.stride(0)),
        {"ROWS": c.rows, "COLUMNS": c.columns, "DEPTH": c.depth, "PRECISION": precision(x.dtype)},
        warps=c.warps,
        stages=c.stages,
    )
    return out.view(*x.shape[:-1], d)


def quantised_linear(
    x: Tensor,
    weight: Tensor,
    scale: Tensor,
    bias: Tensor | None = None,
    *,
    arch: str | None = None,
    config: Config | None = None,
) -> Tensor:
    """... m -> ... d, weight int8 [d, m], scale [d]."""
    rows, d = rows_of(x), len(weight)
    out = torch.empty((len(rows), d), dtype=x.dtype, device=x.device)
    c = config or tiles(LINEAR, arch, x)
    launch(
        int8_kernel,
        (triton.cdiv(len(rows), c.rows), triton.cdiv(d, c.columns)),
        (
            rows,
            weight,
            scale,
            scale if bias is None else bias,
            out,
            len(rows),
            d,
            x.shape[-1],
            rows.stride(0),
            weight.stride(0),
        ),
        {
            "BIAS": bias is not None,
            "ROWS": c.rows,
            "COLUMNS": c.columns,
            "DEPTH": c.depth,
            "PRECISION": precision(x.dtype),
        },
        warps=c.warps,
        stages=c.stages,
    )
    return out.view(*x.shape[:-1], d)
