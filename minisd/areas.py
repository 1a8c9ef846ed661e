"""How regions join a run: whose prediction holds at which latents, and the prompts of each over the steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from minisd.errors import RequestError
from minisd.models.tiling import Tile
from minisd.region import Region
from minisd.request import Request
from minisd.text.account import Account
from minisd.text.conditioning import Conditioning, Encoded, Timeline
from minisd.text.script import tags_of


@dataclass(frozen=True)
class Area:
    """Prompts that hold in a part of the picture. share: 1 1 h w, 0..1; those of all areas add up to 1."""

    share: Tensor
    timeline: Timeline

    def conds(self, step: int) -> tuple[tuple[Conditioning, float], ...]:
        """The prompts of a step, counted from 1."""
        return self.at(step).timeline[0][1].conds

    def at(self, step: int) -> Area:
        """This one as it is in a step, counted from 1."""
        prompts = next((p for end, p in self.timeline if step <= end), self.timeline[-1][1])
        return Area(self.share, ((step, prompts),))


def covered(region: Region, height: int, width: int) -> Tensor:
    """How much of each latent a region covers, h w float32, 0..1."""
    if region.mask is not None:
        small = region.mask.image.resize((width, height), Image.Resampling.BOX)
        return torch.from_numpy(np.asarray(small, dtype=np.float32) / 255)
    assert region.box is not None, "checked by Region"
    left, top, right, bottom = region.box

    def along(begin: float, end: float, cells: int) -> Tensor:
        places = torch.arange(cells, dtype=torch.float64)
        low, high = places.clamp(min=begin * cells), (places + 1).clamp(max=end * cells)
        return (high - low).clamp(0, 1)

    return (along(top, bottom, height)[:, None] * along(left, right, width)).float()


def shares_of(regions: Sequence[Region], height: int, width: int, like: Tensor) -> tuple[Tensor, ...]:
    """The share of the request's own prompt, then of each region, 1 1 h w on like's device. They add up to
    1; a region over everything with weight 1 leaves exactly 0."""
    pulls = [covered(region, height, width) * region.weight for region in regions]
    total = torch.stack(pulls).sum(dim=0)
    left = (1 - total).clamp(min=0)
    parts = [left, *(pull / total.clamp(min=1) for pull in pulls)]
    return tuple(part[None, None].to(like.device) for part in parts)


def in_tile(areas: Sequence[Area], tile: Tile) -> tuple[Area, ...]:
    """The areas that have a part in a tile."""
    cut = [Area(tile.of(area.share), area.timeline) for area in areas]
    return tuple(area for area in cut if bool((area.share > 0).any()))


def areas_of(
    encode: Callable[[Request], Encoded], request: Request, own: Encoded, size: tuple[int, int]
) -> tuple[tuple[Area, ...], tuple[Account, ...]]:
    """The areas of a request's regions over latents of `size`, those that cover nothing left out, and the
    accounts of their prompts. own: the request's prompts, encoded. Raises RequestError for tags in a
    region's prompt."""
    if not request.regions:
        return (), ()
    timelines, accounts = [own.timeline], list[Account]()
    for index, region in enumerate(request.regions):
        said = replace(
            request,
            regions=(),
            prompt=region.prompt,
            prompt_2=None,
            prompt_to=None,
            prompt_blend=0.5,
            prompt_path="slerp",
        )
        if tags := tags_of(said):
            raise RequestError(
                f"regions: the tag {tags[0]} would act on the whole picture; put it into the prompt",
                field="regions",
            )
        made = encode(said)
        timelines.append(made.timeline)
        accounts += [replace(a, region=index) for a in made.accounts if a.field == "prompt"]
    shares = shares_of(request.regions, *size, own.timeline[0][1].uncond.context)
    found = zip(shares, timelines, strict=True)
    return tuple(Area(s, t) for s, t in found if bool((s > 0).any())), tuple(accounts)
