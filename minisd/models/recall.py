"""Passes of the UNet that reuse what its inner blocks gave in an earlier one.

    x ── outer input blocks ──┬─ the rest down, middle, up: the inner blocks ─┬── outer output blocks ── out
                              └──────────── kept, and reused ─────────────────┘

DeepCache (Ma et al. 2023, arXiv:2312.00858): the inner blocks' output is taken as it was; the outermost
blocks on both sides, with the skips between them, are computed in every pass. When, is not decided here.
First-block cache (after TeaCache, Liu et al. 2024, arXiv:2411.19108, and ParaAttention): all after the first
residual block is inner. If the block's output is near what it was, what the inner blocks added then is added
again. Each row of a batch decides for itself; where one must be computed all are, and the others still take
what they kept, so that a row's bits do not depend on its company.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from minisd.models.unet import Told, UNet

FIRST = 2  # input blocks before the inner ones in a first-block cache: a convolution, a residual block


@dataclass(frozen=True)
class Kept:
    """Of one row, 1 c h w: the inner blocks' output; or what they added to `entry`, their input."""

    answer: Tensor
    entry: Tensor | None = None


@dataclass(frozen=True)
class Recall:
    """What one pass may reuse.

    kept: of each row of the batch, or None. keep: told of each row that is computed. blocks: outermost blocks
    on both sides that are computed in any case; or change: of the first block's output, relative, L1, below
    which a row is reused.
    """

    kept: Sequence[Kept | None]
    keep: Callable[[int, Kept], None]
    blocks: int = 0
    change: float | None = None

    def through(self, unet: UNet, x: Tensor, told: Told) -> Tensor:
        """x: b c h w, to what the UNet's `out` reads."""
        before = FIRST if self.change is not None else self.blocks
        last = len(unet.output_blocks) - self.blocks
        h, skips = unet.down(x, told, 0, before)
        entries = h.split(1)
        found = [self.found(*pair) for pair in zip(entries, self.kept, strict=True)]
        fresh = found
        if any(row is None for row in found):
            deep, more = unet.down(h, told, before)
            fresh = unet.up(unet.middle(deep, told), [*skips, *more], told, 0, last).split(1)
        rows = list[Tensor]()
        for index, (old, new) in enumerate(zip(found, fresh, strict=True)):
            if old is None:
                assert new is not None
                self.keep(index, self.made(entries[index], new))
            rows.append(new if old is None else old)  # type: ignore[arg-type]
        return unet.up(torch.cat(rows), skips[: self.blocks], told, last)

    def found(self, entry: Tensor, kept: Kept | None) -> Tensor | None:
        """A row's answer by what was kept of it; None where that does not serve."""
        if kept is None or self.change is None:
            return None if kept is None else kept.answer
        assert kept.entry is not None
        near = size(entry - kept.entry) < self.change * size(kept.entry)
        return entry + kept.answer if near else None

    def made(self, entry: Tensor, answer: Tensor) -> Kept:
        return Kept(answer) if self.change is None else Kept(answer - entry, entry)


def size(x: Tensor) -> float:
    """The sum of |x|, 1 c h w. Planes one by one, then exactly: so it depends on no number of threads."""
    wide = torch.promote_types(x.dtype, torch.float32)
    return math.fsum(x.to(wide).abs().flatten(2).sum(-1)[0].tolist())
