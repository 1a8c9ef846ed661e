"""Says which emoji a picture shows, by the nearest sprite in the hand-made space of `features.py`.

What counts as the same emoji is decided here once. `exact`: the name itself, or one whose sprite is the same
picture to the last bit (the flags of France and Saint Martin; "family" and "family: man, woman, boy"): nobody
could tell them apart. `kind`: also those that differ by a gender or an age in the name ("man cook", "woman
cook", "cook"), families and couples of any make, and the clock faces among themselves. Flags are never merged
but where they are the same picture.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .data import Emoji
from .features import FeatureSpace, disturbed
from .pictures import COLOURS, Object, Painter, Picture, mirrors, pairs_well

PEOPLE = re.compile(
    r"\b(man|woman|men|women|person|people|boy|girl|boys|girls|mr|mrs|prince|princess)\b|[’']s\b|[^a-z ]"
)


def kind_of(emoji: Emoji) -> str:
    """The name without what makes near duplicates: "woman cook" -> "cook"; all clock faces are one kind."""
    name = emoji.name.lower()
    if re.search(r"o’clock|-thirty", name):
        return "clock face"
    if emoji.subgroup == "family":
        return name.split(":")[0]
    if emoji.group != "People & Body":
        return name
    return " ".join(PEOPLE.sub(" ", name).split()) or "person"


def same_pictures(pixels: Tensor) -> list[int]:
    """For each sprite the first one with the same bytes, n 4 h w uint8."""
    first: dict[bytes, int] = {}
    return [first.setdefault(p.numpy().tobytes(), i) for i, p in enumerate(pixels)]


@dataclass(frozen=True)
class Gallery:
    """Sprites as they would stand in a picture, and which emoji each is."""

    space: FeatureSpace
    vectors: Tensor  # n k
    index: Tensor  # n


@dataclass(frozen=True)
class Ranking:
    """Of each picture: emoji by falling nearness, int64 [b, n emoji]; and the nearness by emoji, [b, n
    emoji]."""

    order: Tensor
    nearness: Tensor


class Judge:
    """Galleries of all sprites on each background, made when first asked for."""

    def __init__(self, painter: Painter, emoji: tuple[Emoji, ...]) -> None:
        self.painter, self.emoji = painter, emoji
        names = [kind_of(e) for e in emoji]
        self.exact = torch.tensor(same_pictures(painter.full))
        self.kinds = torch.tensor([names.index(n) for n in names])
        self.galleries: dict[tuple[str, bool], Gallery] = {}
        whole, self.rows = self.pictures("white", False)
        self.space = FeatureSpace.of(whole)
        self.galleries["white", False] = Gallery(self.space, self.space(whole), self.rows)

    def pictures(self, background: str, half: bool) -> tuple[Tensor, Tensor]:
        """Every emoji, mirrored too where that keeps its meaning; `half`: only those that stand beside
        others, as the cut from a pair that `halves` would make."""
        chosen = [i for i, e in enumerate(self.emoji) if pairs_well(e) or not half]
        objects = [Object(i) for i in chosen]
        objects += [Object(i, mirrored=True) for i in chosen if mirrors(self.emoji[i])]
        rows = torch.tensor([o.index for o in objects])
        if not half:
            return self.painter.paint([Picture((o,), background) for o in objects]), rows
        objects = [Object(o.index, "left", o.mirrored) for o in objects]
        return halves(self.painter.paint([Picture((o,), background) for o in objects]))[0], rows

    def gallery(self, background: str, half: bool) -> Gallery:
        key = background, half
        if key not in self.galleries:
            pictures, rows = self.pictures(background, half)
            space = self.space.centred_on(pictures)
            self.galleries[key] = Gallery(space, space(pictures), rows)
        return self.galleries[key]

    def rank(self, pictures: Tensor, background: str = "white", half: bool = False) -> Ranking:
        """pictures: b 3 128 128 in [-1, 1]."""
        gallery = self.gallery(background, half)
        near = gallery.space(pictures) @ gallery.vectors.T
        best = torch.full((len(pictures), len(self.emoji)), -1.0)
        best.scatter_reduce_(1, gallery.index.expand(len(pictures), -1), near, "amax")
        return Ranking(best.argsort(dim=1, descending=True), best)

    def right(self, found: Tensor, wanted: Tensor, rule: str) -> Tensor:
        """Whether emoji `found` counts as `wanted` under the rule "exact" or "kind"; both int64,
        broadcast."""
        classes = {"exact": self.exact, "kind": self.kinds}[rule]
        same = classes[found] == classes[wanted]
        return same | (self.exact[found] == self.exact[wanted])

    def recognised(self, ranking: Ranking, wanted: Tensor, top: int, rule: str = "exact") -> Tensor:
        """bool [b]: one of the `top` nearest emoji is the wanted one."""
        return self.right(ranking.order[:, :top], wanted[:, None], rule).any(dim=1)

    def check(self, half: bool = False, background: str = "white", count: int = 500) -> float:
        """Share of disturbed real sprites that the space finds by their exact name: what it can see at
        all."""
        pictures, rows = self.pictures(background, half)
        generator = torch.Generator().manual_seed(11)
        chosen = torch.randperm(len(rows), generator=generator)[:count]
        seen = disturbed(pictures[chosen], generator)
        ranking = self.rank(seen, background, half)
        return float(self.recognised(ranking, rows[chosen], 1).float().mean())


def halves(pictures: Tensor) -> tuple[Tensor, Tensor]:
    """The squares in which the left and the right of two objects stand, brought to 128 pixels."""
    size = pictures.shape[-1]
    rows = slice(size // 4, size * 3 // 4)
    cuts = (pictures[:, :, rows, : size // 2], pictures[:, :, rows, size // 2 :])
    left, right = (F.interpolate(c, scale_factor=2.0, mode="bilinear", align_corners=False) for c in cuts)
    return left, right


def background_of(picture: Tensor) -> str:
    """The named colour nearest to the median of a frame 4 pixels wide; picture: 3 128 128 in [-1, 1]."""
    inner = torch.ones(picture.shape[1:], dtype=torch.bool)
    inner[4:-4, 4:-4] = False
    middle = (picture[:, inner].median(dim=1).values + 1) * 127.5
    return min(COLOURS, key=lambda name: float((torch.tensor(COLOURS[name]) - middle).square().sum()))
