"""The fused operations as the networks call them, with an implementation by name or a person's own.

What is asked for by name runs or raises ValueError with the reason (`registry.py`). Shapes and
units are those of `reference.py`.
"""

from __future__ import annotations

from torch import Tensor

from minisd.kernels.configs import arch_of
from minisd.kernels.registry import Implementation, Site
from minisd.kernels.table import REGISTRY

Named = str | Implementation


def ready(op: str, named: Named, x: Tensor, **sizes: int) -> Implementation:
    """The implementation, if it can run on x; its conditions are asked only where it has some."""
    one = named if isinstance(named, Implementation) else REGISTRY.find(op, named)
    if one.conditions:
        site = Site(op, x.dtype, x.device.type, arch_of(x.device), **sizes)
        reason = one.why_not(site)
        if reason is not None:
            raise ValueError(f"{site}: {reason}")
    return one


def single(out: Tensor | tuple[Tensor, ...]) -> Tensor:
    assert isinstance(out, Tensor), "this operation gives one tensor"
    return out


def pair(out: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
    assert isinstance(out, tuple) and len(out) == 2, "this operation gives two tensors"
    return out[0], out[1]


def group_norm_silu(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    groups: int,
    eps: float,
    *,
    silu: bool = True,
    implementation: Named = "torch",
) -> Tensor:
    """GroupNorm of x [b c h w], and SiLU of it."""
    b, c, height, width = x.shape
    one = ready("group_norm_silu", implementation, x, b=b, n=height * width, d=c, h=groups)
    return single(one.run(x, weight, bias, groups, eps, silu=silu))


def layer_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    *,
    residual: Tensor | None = None,
    implementation: Named = "torch",
) -> tuple[Tensor, Tensor]:
    """(x + residual, LayerNorm of it), over the last axis."""
    width = x.shape[-1]
    one = ready("layer_norm", implementation, x, n=x.numel() // width, d=width)
    return pair(one.run(x, weight, bias, eps, residual=residual))


def geglu(x: Tensor, weight: Tensor, bias: Tensor, *, implementation: Named = "torch") -> Tensor:
    """value * gelu(gate) of x [... m], weight [2 d, m]: ... d."""
    m = x.shape[-1]
    one = ready("geglu", implementation, x, n=x.numel() // m, m=m, d=len(weight) // 2)
    return single(one.run(x, weight, bias))


def guidance(
    cond: Tensor,
    uncond: Tensor,
    x: Tensor,
    scale: float,
    keep: float,
    add: float,
    ratio: float,
    *,
    implementation: Named = "torch",
) -> tuple[Tensor, Tensor]:
    """(denoised = keep x + add guided, ratio x + (1 - ratio) denoised)."""
    one = ready("guidance", implementation, x, n=x.numel())
    return pair(one.run(cond, uncond, x, scale, keep, add, ratio))


def upsample_conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    folded: Tensor | None = None,
    *,
    implementation: Named = "nearest",
) -> Tensor:
    """3x3 convolution of x [b m h w] with every pixel doubled: b d 2h 2w.

    folded: the weight as `upsample.FOLDS` of this implementation gives it; None computes it here.
    """
    b, m, height, width = x.shape
    one = ready("upsample_conv", implementation, x, b=b, n=height * width, m=m, d=len(weight))
    return single(one.run(x, weight, bias, folded))


def quantised_linear(
    x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None = None, *, implementation: Named = "torch"
) -> Tensor:
    """x [... m] times int8 weight [d, m], scale [d] of each output: ... d."""
    m = x.shape[-1]
    one = ready("quantised_linear", implementation, x, n=x.numel() // m, m=m, d=len(weight))
    return single(one.run(x, weight, scale, bias))
