"""Products with weights that were laid before as oneDNN multiplies them (CPU).

torch lays a weight anew in every call, which costs a third of the time of convolutions with many channels at
few pixels (SD's 16 x 16 and 8 x 8 levels), and writes a bias out before it multiplies. The operators are
those that torch's own compiler emits for a CPU. Results may round otherwise than those of torch's layers.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

OPERATORS = (
    "_reorder_linear_weight",
    "_linear_pointwise",
    "_reorder_convolution_weight",
    "_convolution_pointwise",
)
Geometry = tuple[list[int], list[int], list[int], int]  # padding, stride, dilation, groups
NO_SCALARS: list[float | None] = []


def packed_missing(device: str) -> str | None:
    """Why weights cannot be packed on this kind of device, or None."""
    if device != "cpu":
        return f"oneDNN lays weights for CPUs, and this is {device}"
    if not torch.backends.mkldnn.is_available() or not all(hasattr(torch.ops.mkldnn, o) for o in OPERATORS):
        return "this torch has no oneDNN operators for weights that were laid before"
    return None


def pack_linear(weight: Tensor) -> Tensor:
    """[o, i], laid for `linear`; `to_dense` gives it back."""
    return torch.ops.mkldnn._reorder_linear_weight(weight.contiguous())


def pack_conv(weight: Tensor, geometry: Geometry) -> Tensor:
    """[o, i, kh, kw], laid for `conv`; `to_dense` gives it back."""
    return torch.ops.mkldnn._reorder_convolution_weight(weight, *geometry)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x [... i] times a weight [o, i], packed or not: ... o."""
    if not weight.is_mkldnn:
        return F.linear(x, weight, bias)
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", NO_SCALARS, "")


def conv(x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry) -> Tensor:
    """Convolution of x [b i h w] with a packed weight: b o h' w'."""
    return torch.ops.mkldnn._convolution_pointwise(x, weight, bias, *geometry, "none", NO_SCALARS, "")
