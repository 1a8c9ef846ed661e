"""A training picture as data: which objects, where, on what colour; and the pixels that follow from it."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from .data import SIZE, Emoji, Sprites
from .favourites import FAVOURITES

Place = Literal["middle", "left", "right", "above", "below"]
Style = Literal["colour", "grey", "outline"]

# Where sprites of half size stand, pixels (x, y) of their upper left corner.
HALF = SIZE // 2
CORNERS: dict[str, tuple[int, int]] = {
    "left": (0, HALF // 2),
    "right": (HALF, HALF // 2),
    "above": (HALF // 2, 0),
    "below": (HALF // 2, HALF),
    "small": (HALF // 2, HALF // 2),
}
COUNTED: dict[int, tuple[tuple[int, int], ...]] = {
    2: (CORNERS["left"], CORNERS["right"]),
    3: ((0, 0), (HALF, 0), CORNERS["below"]),
}

COLOURS: dict[str, tuple[int, int, int]] = {
    "white": (255, 255, 255),
    "black": (20, 20, 24),
    "grey": (150, 150, 155),
    "red": (214, 48, 49),
    "orange": (245, 140, 40),
    "yellow": (250, 215, 70),
    "green": (60, 165, 80),
    "blue": (50, 110, 215),
    "purple": (130, 75, 180),
    "pink": (250, 170, 195),
    "brown": (125, 85, 60),
}
PLAIN = tuple(name for name in COLOURS if name != "white")

# Mirrored, these still are what their name says. No writing, no clock, no left and right.
MIRRORED_GROUPS = frozenset({"Animals & Nature", "Food & Drink"})
MIRRORED_SUBGROUPS = frozenset(
    {"transport-ground", "transport-water", "transport-air", "tool", "household", "sport"}
)

# How often an object is drawn, relative to a plain one. Flags and the gendered rows of people are many and
# alike; animals and food are what people ask for first.
GROUP_WEIGHT = {
    "Flags": 0.25,
    "Symbols": 0.6,
    "People & Body": 0.3,
    "Smileys & Emotion": 0.8,
    "Animals & Nature": 1.4,
    "Food & Drink": 1.4,
    "Travel & Places": 1.0,
    "Activities": 1.0,
    "Objects": 1.0,
}


@dataclass(frozen=True)
class Object:
    """One sprite in the picture, by its index."""

    index: int
    place: Place = "middle"
    mirrored: bool = False


@dataclass(frozen=True)
class Picture:
    """One object in the middle, or two of which one is left of, or above, the other (that one first).

    A single object may be `small` (half size), stand there two or three times (`count`, at half size), or be
    drawn in grey or as an outline.
    """

    objects: tuple[Object, ...]
    background: str = "white"
    small: bool = False
    count: int = 1
    style: Style = "colour"

    @property
    def kind(self) -> str:
        """What the proportions of the training count: pair, count, small, style, white or colour."""
        if len(self.objects) == 2:
            return "pair"
        if self.count > 1:
            return "count"
        if self.small:
            return "small"
        if self.style != "colour":
            return "style"
        return "white" if self.background == "white" else "colour"


@dataclass(frozen=True)
class Shares:
    """Of all pictures drawn: pairs, repeated, small, and drawn in another style; the rest are single objects,
    `white` of them on white."""

    white: float = 0.6
    pairs: float = 0.2
    counts: float = 0.04
    smalls: float = 0.04
    styles: float = 0.04

    def of_kinds(self) -> dict[str, float]:
        """Share of each kind of Picture; the sum is 1."""
        single = 1 - self.pairs - self.counts - self.smalls - self.styles
        named = {"pair": self.pairs, "count": self.counts, "small": self.smalls, "style": self.styles}
        return {**named, "white": single * self.white, "colour": single * (1 - self.white)}


def weight(emoji: Emoji, favour: float, groups: Mapping[str, float]) -> float:
    """How often this object is drawn; favourites `favour` times as often as others of their group."""
    return groups.get(emoji.group, 1.0) * (favour if emoji.name in FAVOURITES else 1.0)


def mirrors(emoji: Emoji) -> bool:
    return emoji.group in MIRRORED_GROUPS or emoji.subgroup in MIRRORED_SUBGROUPS


def pairs_well(emoji: Emoji) -> bool:
    """Objects that a two-object caption may name: things one can point at, not signs or relatives of each
    other.
    """
    return emoji.group in {"Animals & Nature", "Food & Drink", "Travel & Places", "Activities", "Objects"}


Held = frozenset[tuple[str, str, str]]  # (name, background, place)


def held_out(
    emoji: tuple[Emoji, ...], count: int, stacked: int, seed: int = 2026
) -> list[tuple[str, str, str]]:
    """Combinations object x colour x position that training never sees: sorted (name, background, place).

    `count` of them in the middle, left or right, and `stacked` above or below.
    """
    rng = random.Random(seed)
    names = sorted({e.name for e in emoji if pairs_well(e)})
    chosen: set[tuple[str, str, str]] = set()
    while len(chosen) < count:
        chosen.add((rng.choice(names), rng.choice(PLAIN), rng.choice(("middle", "left", "right"))))
    while len(chosen) < count + stacked:
        chosen.add((rng.choice(names), rng.choice(PLAIN), rng.choice(("above", "below"))))
    return sorted(chosen)


class PictureSource:
    """Draws random pictures with the proportions of the recipe, never one that is held out."""

    def __init__(
        self,
        emoji: tuple[Emoji, ...],
        held: Held,
        shares: Shares,
        *,
        mirror: float,
        favour: float = 1.0,
        groups: Mapping[str, float] = GROUP_WEIGHT,
    ) -> None:
        self.emoji, self.held, self.shares, self.mirror = emoji, held, shares, mirror
        self.weights = [weight(e, favour, groups) for e in emoji]
        self.pairable = [i for i, e in enumerate(emoji) if pairs_well(e)]
        self.pair_weights = [self.weights[i] for i in self.pairable]

    def is_held(self, picture: Picture) -> bool:
        return any(
            (self.emoji[o.index].name, picture.background, o.place) in self.held for o in picture.objects
        )

    def _object(self, index: int, place: Place, rng: random.Random) -> Object:
        return Object(index, place, mirrors(self.emoji[index]) and rng.random() < self.mirror)

    def colour(self, rng: random.Random) -> str:
        return rng.choice(PLAIN)

    def background(self, rng: random.Random) -> str:
        return "white" if rng.random() < self.shares.white else self.colour(rng)

    def draw_pair(self, rng: random.Random) -> Picture:
        first, second = rng.choices(self.pairable, self.pair_weights, k=2)
        places: tuple[Place, Place] = ("left", "right") if rng.random() < 0.65 else ("above", "below")
        objects = (self._object(first, places[0], rng), self._object(second, places[1], rng))
        return Picture(objects, self.background(rng))

    def draw_kind(self, kind: str, rng: random.Random) -> Picture:
        """One picture of a kind (see Picture.kind)."""
        if kind == "pair":
            return self.draw_pair(rng)
        pool, weights = (
            (self.pairable, self.pair_weights)
            if kind in ("count", "small")
            else (range(len(self.emoji)), self.weights)
        )
        one = (self._object(rng.choices(pool, weights)[0], "middle", rng),)
        if kind == "count":
            return Picture(one, self.background(rng), count=rng.choice((2, 3)))
        if kind == "small":
            return Picture(one, self.background(rng), small=True)
        if kind == "style":
            style: Style = rng.choice(("grey", "outline"))
            return Picture(one, self.background(rng), style=style)
        return Picture(one, "white" if kind == "white" else self.colour(rng))

    def draw(self, rng: random.Random, kind: str | None = None) -> Picture:
        """A picture that is not held out, of this kind or of one drawn by its share."""
        kinds = self.shares.of_kinds()
        while True:
            picture = self.draw_kind(kind or rng.choices(list(kinds), list(kinds.values()))[0], rng)
            twice = len(picture.objects) == 2 and picture.objects[0].index == picture.objects[1].index
            if not twice and not self.is_held(picture):
                return picture


def grey(sprite: Tensor) -> Tensor:
    """Premultiplied sprite 4 h w, 0..255, without its colour (Rec. 601 luma)."""
    luma = (sprite[:3] * torch.tensor([0.299, 0.587, 0.114])[:, None, None]).sum(0)
    return torch.stack([luma, luma, luma, sprite[3]])


def outline(sprite: Tensor) -> Tensor:
    """Premultiplied sprite 4 h w, 0..255, as dark lines where colour or alpha change, clear elsewhere."""
    layers = F.pad(sprite, (1, 1, 1, 1)) / 255
    dx = (layers[:, 1:-1, 2:] - layers[:, 1:-1, :-2]).abs().amax(0)
    dy = (layers[:, 2:, 1:-1] - layers[:, :-2, 1:-1]).abs().amax(0)
    ink = ((dx + dy) * 1.6 - 0.3).clamp(0, 1)
    return torch.cat([ink[None].expand(3, -1, -1) * 40, ink[None] * 255])


class Painter:
    """Pixels of pictures: float32 [b, 3, 128, 128] in [-1, 1]."""

    def __init__(self, sprites: Sprites) -> None:
        self.full = sprites.pixels
        # half size for two side by side; the mean of 2x2 is exact for premultiplied colour
        half = [F.avg_pool2d(part.float(), 2).round().to(torch.uint8) for part in self.full.split(256)]
        self.half = torch.cat(half)

    def sprite(self, item: Object, picture: Picture) -> Tensor:
        """The object's layer, 4 h w, 0..255, at full or half size."""
        whole = item.place == "middle" and not picture.small and picture.count == 1
        sprite = (self.full if whole else self.half)[item.index].float()
        sprite = sprite.flip(-1) if item.mirrored else sprite
        return {"colour": lambda x: x, "grey": grey, "outline": outline}[picture.style](sprite)

    def corners(self, item: Object, picture: Picture) -> tuple[tuple[int, int], ...]:
        """(x, y) of each copy of the object."""
        if picture.count > 1:
            return COUNTED[picture.count]
        if picture.small:
            return (CORNERS["small"],)
        return ((0, 0),) if item.place == "middle" else (CORNERS[item.place],)

    def paint(self, pictures: list[Picture]) -> Tensor:
        layers = torch.zeros(len(pictures), 4, SIZE, SIZE)
        for row, picture in enumerate(pictures):
            for item in picture.objects:
                sprite = self.sprite(item, picture)
                for x, y in self.corners(item, picture):
                    layers[row, :, y : y + sprite.shape[1], x : x + sprite.shape[2]] = sprite
        background = torch.tensor([COLOURS[p.background] for p in pictures]).float()[:, :, None, None]
        rgb = layers[:, :3] + background * (1 - layers[:, 3:] / 255)
        return rgb / 127.5 - 1
