"""Every implementation that comes with minisd, in order of preference: the first is what networks run unless
another is asked for by name. Triton is imported when one of its kernels first runs."""

from __future__ import annotations

import torch
from torch import Tensor

from minisd.kernels import attention_torch, fused_torch, reference
from minisd.kernels.conditions import FLOATS, avx512_runs, head_dim, of, on, triton_runs, width
from minisd.kernels.registry import Implementation, Registry, Site

HALVES = (torch.bfloat16, torch.float16)


def triton_flash(q: Tensor, k: Tensor, v: Tensor, num_heads: int, *, causal: bool = False) -> Tensor:
    from minisd.kernels.triton_attention import flash

    return flash(q, k, v, num_heads, causal=causal)


def triton_cross(q: Tensor, k: Tensor, v: Tensor, num_heads: int, *, causal: bool = False) -> Tensor:
    from minisd.kernels.triton_attention import cross

    return cross(q, k, v, num_heads, causal=causal)


def triton_wide(q: Tensor, k: Tensor, v: Tensor, num_heads: int, *, causal: bool = False) -> Tensor:
    from minisd.kernels.triton_rows import wide_attention

    return wide_attention(q, k, v, num_heads, causal=causal)


def triton_group_norm(
    x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float, *, silu: bool = True
) -> Tensor:
    from minisd.kernels.triton_norm import group_norm_silu

    return group_norm_silu(x, weight, bias, groups, eps, silu=silu)


def triton_layer_norm(
    x: Tensor, weight: Tensor, bias: Tensor, eps: float, *, residual: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    from minisd.kernels.triton_norm import layer_norm

    return layer_norm(x, weight, bias, eps, residual=residual)


def triton_geglu(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    from minisd.kernels.triton_linear import geglu

    return geglu(x, weight, bias)


def triton_quantised(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None = None) -> Tensor:
    from minisd.kernels.triton_linear import quantised_linear

    return quantised_linear(x, weight, scale, bias)


def triton_guidance(
    cond: Tensor, uncond: Tensor, x: Tensor, scale: float, keep: float, add: float, ratio: float
) -> tuple[Tensor, Tensor]:
    from minisd.kernels.triton_rows import guidance

    return guidance(cond, uncond, x, scale, keep, add, ratio)


def avx512_attention(q: Tensor, k: Tensor, v: Tensor, num_heads: int, *, causal: bool = False) -> Tensor:
    from minisd.kernels.avx512.calls import attention

    return attention(q, k, v, num_heads, causal=causal)


def avx512_group_norm(
    x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float, *, silu: bool = True
) -> Tensor:
    from minisd.kernels.avx512.calls import group_norm_silu

    return group_norm_silu(x, weight, bias, groups, eps, silu=silu)


def avx512_layer_norm(
    x: Tensor, weight: Tensor, bias: Tensor, eps: float, *, residual: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    from minisd.kernels.avx512.calls import layer_norm

    return layer_norm(x, weight, bias, eps, residual=residual)


def avx512_geglu(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    from minisd.kernels.avx512.calls import geglu

    return geglu(x, weight, bias)


def attentions(op: str, triton: Implementation) -> list[Implementation]:
    """What torch has for an attention, and one of ours."""
    t = attention_torch
    gpu, half = on("cuda"), of(*HALVES)
    one_head = Implementation(
        op,
        "chunked",
        t.chunked,
        "bfloat16 products, a head and 256 queries at a time",
        (on("cpu"), of(torch.bfloat16)),
        approximate=0.02,
    )
    return [
        Implementation(op, "sdpa", t.sdpa, "torch's fused kernel for this device"),
        triton,
        Implementation(
            op,
            "avx512",
            avx512_attention,
            "flash attention in vector registers",
            (*native, head_dim(1024, multiple=1)),
        ),
        Implementation(op, "sliced", t.sliced, "plain softmax over slices of queries"),
        Implementation(op, "sdpa_math", t.math, "torch's two products, all scores in memory"),
        Implementation(op, "sdpa_flash", t.flash, "FlashAttention as torch carries it", (flash_takes,)),
        Implementation(op, "sdpa_efficient", t.efficient, "torch's memory-efficient kernel", (gpu,)),
        Implementation(op, "sdpa_cudnn", t.cudnn, "cuDNN's attention", (gpu, half, head_dim(128))),
        *([one_head] if op in ("self_attention", "wide_attention") else []),
        Implementation(op, "reference", reference.attention, "float64, all scores in memory"),
    ]


def flash_takes(site: Site) -> str | None:
    """On a GPU half precision and head dims up to 256; on a CPU float32 and more."""
    if site.device == "cpu":
        return None
    return on("cuda")(site) or of(*HALVES)(site) or head_dim(256)(site)


ours = (triton_runs, of(*FLOATS))
native = (avx512_runs, of(torch.float32, torch.bfloat16))
REGISTRY = Registry.of(
    [
        *attentions(
            "self_attention",
            Implementation(
                "self_attention",
                "triton",
                triton_flash,
                "flash attention, split head dims, fused projections",
                (*ours, head_dim(256)),
            ),
        ),
        *attentions(
            "cross_attention",
            Implementation(
                "cross_attention",
                "triton",
                triton_cross,
                "all keys of a text in one block, a loop beyond 160",
                (*ours, head_dim(256)),
            ),
        ),
        *attentions(
            "causal_attention",
            Implementation(
                "causal_attention",
                "triton",
                triton_flash,
                "flash attention up to the diagonal",
                (*ours, head_dim(256)),
            ),
        ),
        *attentions(
            "wide_attention",
            Implementation(
                "wide_attention",
                "triton",
                triton_wide,
                "two library products around a softmax, 1024 queries at a time",
                ours,
            ),
        ),
        Implementation("group_norm_silu", "torch", fused_torch.group_norm_silu, "two calls of torch"),
        Implementation(
            "group_norm_silu", "triton", triton_group_norm, "channels last, parts of fixed size", ours
        ),
        Implementation(
            "group_norm_silu", "avx512", avx512_group_norm, "channels last, parts of fixed size", native
        ),
        Implementation("group_norm_silu", "reference", reference.group_norm_silu, "float64"),
        Implementation("layer_norm", "torch", fused_torch.layer_norm, "a sum and a call of torch"),
        Implementation(
            "layer_norm", "triton", triton_layer_norm, "sum and norm in one pass", (*ours, width(16384))
        ),
        Implementation("layer_norm", "avx512", avx512_layer_norm, "sum and norm in one pass", native),
        Implementation("layer_norm", "reference", reference.layer_norm, "float64"),
        Implementation("geglu", "torch", fused_torch.geglu, "one product, then two passes"),
        Implementation("geglu", "triton", triton_geglu, "the wide row never reaches memory", ours),
        Implementation("geglu", "avx512", avx512_geglu, "torch's product, then one pass", native),
        Implementation("geglu", "reference", reference.geglu, "float64"),
        Implementation("guidance", "torch", fused_torch.guidance, "one call for each sum"),
        Implementation("guidance", "triton", triton_guidance, "everything in one pass", ours),
        Implementation("guidance", "reference", reference.guidance, "float64"),
        Implementation(
            "upsample_conv", "nearest", fused_torch.upsample_nearest, "as written: doubled, then 3x3"
        ),
        Implementation(
            "upsample_conv",
            "transposed",
            fused_torch.upsample_transposed,
            "one transposed convolution with summed weights, 2.25 times fewer products",
        ),
        Implementation(
            "upsample_conv",
            "sub_pixel",
            fused_torch.upsample_sub_pixel,
            "four 2x2 convolutions with summed weights, 2.25 times fewer products",
        ),
        Implementation("upsample_conv", "reference", reference.upsample_conv, "float64"),
        Implementation(
            "quantised_linear", "torch", fused_torch.quantised_linear, "weights widened, then multiplied"
        ),
        Implementation(
            "quantised_linear", "triton", triton_quantised, "weights widened inside the product", ours
        ),
        Implementation("quantised_linear", "reference", reference.quantised_linear, "float64"),
    ]
)
