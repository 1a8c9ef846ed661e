"""A layer with adapters beside it: layer(x) + sum of paths(x), the layer's own weight left as it is.

For weights that cannot be changed: quantised, streamed, or still in the file. A low-rank path costs two small
layers and keeps its factors; a dense one is a second layer of full size. In exact arithmetic the result is
that of the merged weight.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from minisd.models.conv import Conv2d, per_token


class LowRank(nn.Module):
    """x -> up(mid(down(x))): the factors of a LoRA, its scale multiplied into `up`.

    down: [r, i] or [r, i, k, k], up: [o, r] or [o, r, 1, 1], mid: [r, r, k, k] (Tucker form) or None. stride
    and padding are those of the layer beside it and belong to the factor with the k x k taps.
    """

    def __init__(
        self,
        down: Tensor,
        up: Tensor,
        mid: Tensor | None = None,
        stride: tuple[int, ...] = (1, 1),
        padding: tuple[int, ...] = (0, 0),
    ) -> None:
        super().__init__()
        plain = ((1, 1), (0, 0))
        wide = (stride, padding)
        self.down = layer(down, *(plain if mid is not None else wide))
        self.mid = nn.Identity() if mid is None else layer(mid, *wide)
        self.up = layer(up, *plain)

    def forward(self, x: Tensor) -> Tensor:
        """b n i -> b n o, or b i h w -> b o h' w'."""
        if x.ndim == 4:
            return self.up(self.mid(self.down(x)))
        return per_token(self.up, per_token(self.down, x))


def layer(weight: Tensor, stride: tuple[int, ...] = (1, 1), padding: tuple[int, ...] = (0, 0)) -> nn.Module:
    """A layer without bias around a weight [o, i] or [o, i, k, k]."""
    outputs, inputs = weight.shape[:2]
    with torch.device("meta"):
        if weight.ndim == 2:
            made: nn.Module = nn.Linear(inputs, outputs, bias=False)
        else:
            taps = (weight.shape[2], weight.shape[3])
            at, edge = (stride[0], stride[1]), (padding[0], padding[1])
            made = Conv2d(inputs, outputs, taps, stride=at, padding=edge, bias=False)
    made.register_parameter("weight", nn.Parameter(weight, requires_grad=False))
    return made


class SidePath(nn.Module):
    """base(x) + sum of paths(x) + bias. `base`: a linear layer or a convolution, of any storage."""

    def __init__(self, base: nn.Module, paths: Sequence[nn.Module], bias: Tensor | None = None) -> None:
        super().__init__()
        self.base = base
        self.paths = nn.ModuleList(paths)
        self.added = None if bias is None else nn.Parameter(bias, requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """x as `base` takes it, or tokens b n c for a 1x1 convolution."""
        image = x.ndim == 4
        called = image or isinstance(self.base, nn.Linear)  # so that what brings its weight hears of it
        out = self.base(x) if called else per_token(self.base, x)
        for path in self.paths:
            out = out + (path(x) if image or isinstance(path, LowRank) else per_token(path, x))
        if self.added is not None:
            out = out + (self.added[:, None, None] if image else self.added)
        return out


def low_rank_like(base: nn.Module, down: Tensor, up: Tensor, mid: Tensor | None) -> LowRank:
    """The path beside `base`, with its stride and padding where it is a convolution."""
    return LowRank(down, up, mid, *geometry(base))


def dense_like(base: nn.Module, weight: Tensor) -> nn.Module:
    """A layer of full size beside `base`."""
    return layer(weight, *geometry(base))


def geometry(base: nn.Module) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """(stride, padding) of a convolution, or of none."""
    stride, padding = getattr(base, "stride", (1, 1)), getattr(base, "padding", (0, 0))
    assert isinstance(stride, tuple) and isinstance(padding, tuple), "these networks pad by numbers"
    return stride, padding
