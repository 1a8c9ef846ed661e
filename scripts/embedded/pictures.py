"""A training picture as data: which objects, where, on what colour; and the pixels that follow from it."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from .data import SIZE, Emoji, Sprites
from .favourites import FAVOURITES

Place = Literal["middle", "left", "right"]

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
    "Flags": 0.1,
    "Symbols": 0.3,
    "People & Body": 0.25,
    "Smileys & Emotion": 0.8,
    "Animals & Nature": 1.4,
    "Food & Drink": 1.4,
}


@dataclass(frozen=True)
class Object:
    """One sprite in the picture, by its index."""

    index: int
    place: Place = "middle"
    mirrored: bool = False


@dataclass(frozen=True)
class Picture:
    """One object in the middle, or two side by side (left first)."""

    objects: tuple[Object, ...]
    background: str = "white"


def weight(emoji: Emoji, favour: float) -> float:
    """How often this object is drawn; favourites `favour` times as often."""
    return GROUP_WEIGHT.get(emoji.group, 1.0) * (favour if emoji.name in FAVOURITES else 1.0)


def mirrors(emoji: Emoji) -> bool:
    return emoji.group in MIRRORED_GROUPS or emoji.subgroup in MIRRORED_SUBGROUPS


def pairs_well(emoji: Emoji) -> bool:
    """Objects that a two-object caption may name: things one can point at, not signs or relatives of each
    other.
    """
    return emoji.group in {"Animals & Nature", "Food & Drink", "Travel & Places", "Activities", "Objects"}


Held = frozenset[tuple[str, str, str]]  # (name, background, place)


def held_out(emoji: tuple[Emoji, ...], count: int, seed: int = 2026) -> list[tuple[str, str, str]]:
    """`count` combinations object x colour x position that training never sees: sorted (name, background,
    place).
    """
    rng = random.Random(seed)
    names = sorted({e.name for e in emoji if pairs_well(e)})
    chosen: set[tuple[str, str, str]] = set()
    while len(chosen) < count:
        chosen.add((rng.choice(names), rng.choice(PLAIN), rng.choice(("middle", "left", "right"))))
    return sorted(chosen)


class PictureSource:
    """Draws random pictures with the proportions of the recipe, never one that is held out."""

    def __init__(
        self,
        emoji: tuple[Emoji, ...],
        held: Held,
        *,
        white: float,
        pairs: float,
        mirror: float,
        favour: float = 1.0,
    ) -> None:
        self.emoji, self.held = emoji, held
        self.white, self.pairs, self.mirror = white, pairs, mirror
        self.weights = [weight(e, favour) for e in emoji]
        self.pairable = [i for i, e in enumerate(emoji) if pairs_well(e)]

    def is_held(self, picture: Picture) -> bool:
        return any(
            (self.emoji[o.index].name, picture.background, o.place) in self.held for o in picture.objects
        )

    def _object(self, index: int, place: Place, rng: random.Random) -> Object:
        return Object(index, place, mirrors(self.emoji[index]) and rng.random() < self.mirror)

    def colour(self, rng: random.Random) -> str:
        return rng.choice(PLAIN)

    def background(self, rng: random.Random) -> str:
        return "white" if rng.random() < self.white else self.colour(rng)

    def draw_single(self, rng: random.Random) -> Picture:
        index = rng.choices(range(len(self.emoji)), self.weights)[0]
        return Picture((self._object(index, "middle", rng),), self.background(rng))

    def draw_pair(self, rng: random.Random) -> Picture:
        left, right = rng.sample(self.pairable, 2)
        objects = (self._object(left, "left", rng), self._object(right, "right", rng))
        return Picture(objects, self.background(rng))

    def draw(self, rng: random.Random) -> Picture:
        while True:
            picture = self.draw_pair(rng) if rng.random() < self.pairs else self.draw_single(rng)
            if not self.is_held(picture):
                return picture


class Painter:
    """Pixels of pictures: float32 [b, 3, 128, 128] in [-1, 1]."""

    def __init__(self, sprites: Sprites) -> None:
        self.full = sprites.pixels
        # half size for two side by side; the mean of 2x2 is exact for premultiplied colour
        half = [F.avg_pool2d(part.float(), 2).round().to(torch.uint8) for part in self.full.split(256)]
        self.half = torch.cat(half)

    def paint(self, pictures: list[Picture]) -> Tensor:
        layers = torch.zeros(len(pictures), 4, SIZE, SIZE)
        for row, picture in enumerate(pictures):
            for item in picture.objects:
                sprite = (self.full if item.place == "middle" else self.half)[item.index]
                sprite = sprite.flip(-1) if item.mirrored else sprite
                x = SIZE // 2 if item.place == "right" else 0
                y = 0 if item.place == "middle" else SIZE // 4
                layers[row, :, y : y + sprite.shape[1], x : x + sprite.shape[2]] = sprite.float()
        background = torch.tensor([COLOURS[p.background] for p in pictures]).float()[:, :, None, None]
        rgb = layers[:, :3] + background * (1 - layers[:, 3:] / 255)
        return rgb / 127.5 - 1
