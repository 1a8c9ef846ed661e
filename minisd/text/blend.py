"""Between two prompts: each vector of the text encoder's output moved from one prompt's to the other's."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Path = Literal["slerp", "lerp"]
PARALLEL = 1e-4  # below this angle (radians) the arc is a line


def between(a: Tensor, b: Tensor, share: float, path: Path) -> Tensor:
    """From a (share 0, the same bits) to b (share 1), both ... d, along the last axis.

    lerp: the straight line. slerp: on the sphere (Shoemake 1985), lengths going over evenly, so that vectors
    half way are as long as those they lie between. Computed in float32 or wider.
    """
    if share <= 0.0:
        return a
    if share >= 1.0:
        return b
    wide = torch.promote_types(a.dtype, torch.float32)
    x, y = a.to(wide), b.to(wide)
    straight = x + share * (y - x)
    if path == "lerp":
        return straight.to(a.dtype)
    long_x, long_y = x.norm(dim=-1, keepdim=True), y.norm(dim=-1, keepdim=True)
    unit_x, unit_y = (t / n.clamp_min(torch.finfo(wide).tiny) for t, n in ((x, long_x), (y, long_y)))
    # by the chord: arccos of the product would lose small angles
    angle = 2.0 * torch.asin(((unit_x - unit_y).norm(dim=-1, keepdim=True) / 2).clamp(max=1.0))
    arc = (torch.sin((1 - share) * angle) * unit_x + torch.sin(share * angle) * unit_y) / torch.sin(angle)
    curved = arc * (long_x + share * (long_y - long_x))
    # opposite vectors have no arc between them, and zeros no direction
    lines = (angle < PARALLEL) | (angle > torch.pi - PARALLEL) | (long_x == 0) | (long_y == 0)
    return torch.where(lines, straight, curved).to(a.dtype)
