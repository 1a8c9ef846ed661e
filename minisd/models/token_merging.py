"""Token merging: self-attention among fewer tokens, those much like another one merged into it.

Paper: Bolya and Hoffman 2023 (arXiv:2303.17604), after Bolya et al. 2022 (arXiv:2210.09461), "bipartite soft
matching". In each 2 x 2 cells of the map one token is a destination. Every other token finds the destination
it is most like (cosine); the share `ratio` of all tokens that are most like theirs are merged into them, by
the mean. Afterwards a token that was merged takes a copy of what its destination got.

Which of the four is the destination is drawn by the paper at random; here it is a fixed pattern without
order, a function of the map's size alone, so that a picture depends on nothing but its request.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from minisd.models.conv import parts_of
from minisd.models.edits import Size, Then

CELL = 2
MOST = 1 - 1 / CELL**2  # share of tokens that can be merged: one of each cell stays
PATTERN = 2303_17604  # seed of the pattern


def destinations(size: Size) -> Tensor:
    """Of each cell of a map h w, those cut off at its edge too, one token: indices into (h w), rising."""
    (h, w), generator = size, torch.Generator().manual_seed(PATTERN)
    rows, columns = -(-h // CELL), -(-w // CELL)
    place = torch.randint(CELL**2, (rows, columns), generator=generator)
    row = (torch.arange(rows)[:, None] * CELL + place // CELL).clamp(max=h - 1)
    column = (torch.arange(columns) * CELL + place % CELL).clamp(max=w - 1)
    return (row * w + column).flatten().sort().values


@dataclass(frozen=True)
class Matching:
    """Of b pictures with n tokens, int64: kept [b n - d - r], merged [b r], into [b r] (places among
    destinations), destinations [d]."""

    kept: Tensor
    merged: Tensor
    into: Tensor
    destinations: Tensor

    def merge(self, x: Tensor) -> Tensor:
        """b n c -> b (n - r) c: those kept, then the destinations. Sums are products with zeros and ones: a
        GPU would scatter in any order."""
        base, gone = x[:, self.destinations], taken(x, self.merged)
        goes = torch.arange(len(self.destinations), device=x.device)[:, None] == self.into[:, None]
        total = base
        for part in parts_of(gone.shape[1]):
            total = torch.baddbmm(total, goes[..., part].to(x.dtype), gone[:, part])
        mean = total / (1 + goes.sum(-1, keepdim=True)).to(x.dtype)
        return torch.cat([taken(x, self.kept), mean], dim=1)

    def unmerge(self, y: Tensor) -> Tensor:
        """b (n - r) c -> b n c."""
        kept, base = y.split([self.kept.shape[1], len(self.destinations)], dim=1)
        out = y.new_empty(y.shape[0], y.shape[1] + self.merged.shape[1], y.shape[2])
        out[:, self.destinations] = base
        out.scatter_(1, wide(self.kept, y), kept)
        return out.scatter_(1, wide(self.merged, y), taken(base, self.into))


def wide(index: Tensor, like: Tensor) -> Tensor:
    return index[..., None].expand(-1, -1, like.shape[-1])


def taken(x: Tensor, index: Tensor) -> Tensor:
    return x.gather(1, wide(index, x))


def matching(x: Tensor, size: Size, ratio: float) -> Matching | None:
    """Of tokens b n c over a map of `size`; None where no token is to be merged."""
    n, chosen = x.shape[1], destinations(size).to(x.device)
    other = torch.ones(n, dtype=torch.bool, device=x.device).index_fill(0, chosen, False).nonzero()[:, 0]
    count = min(int(n * ratio), len(other))
    if count == 0:
        return None
    unit = x / x.norm(dim=-1, keepdim=True)
    near, into = (unit[:, other] @ unit[:, chosen].transpose(1, 2)).max(dim=-1)
    order = near.argsort(dim=-1, descending=True, stable=True)
    gone, stay = order[:, :count], order[:, count:]
    return Matching(other[stay], other[gone], into.gather(1, gone), chosen)


@dataclass(frozen=True)
class Merging:
    """A `Regroup`. ratio: share of the tokens, 0 .. MOST."""

    ratio: float

    def __call__(self, x: Tensor, normed: Tensor, size: Size, then: Then) -> Tensor:
        if x.shape[0] > 1 and x.device.type == "cpu":  # few tokens may be left: see `FEW_TOKENS`
            pairs = zip(x.split(1), normed.split(1), strict=True)
            return torch.cat([self(a, b, size, then) for a, b in pairs])
        match = matching(x, size, self.ratio)
        return then(x, normed, size) if match is None else match.unmerge(then(x, match.merge(normed), size))
