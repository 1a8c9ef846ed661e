"""Stage 2a: pictures encoded once. The diffusion stage sees each latent many times, with a new caption and
new noise each time.
"""

from __future__ import annotations

import random
from pathlib import Path

import torch
from torch import Tensor

from minisd.models.vae import AutoencoderKL

from .pictures import Object, Painter, Picture, PictureSource, mirrors
from .vae import encode_all


class LatentPool:
    """Pictures and their scaled latents, fp16 [n, 4, 16, 16]. `weights`: how often each is drawn."""

    def __init__(
        self, pictures: list[Picture], latents: Tensor, weights: Tensor, scale_factor: float
    ) -> None:
        self.pictures, self.latents, self.weights = pictures, latents, weights
        self.scale_factor = scale_factor

    def save(self, path: Path) -> None:
        rows = [([(o.index, o.place, o.mirrored) for o in p.objects], p.background) for p in self.pictures]
        state = {"pictures": rows, "latents": self.latents, "weights": self.weights}
        torch.save(state | {"scale_factor": self.scale_factor}, path)

    @classmethod
    def load(cls, path: Path) -> LatentPool:
        saved = torch.load(path, weights_only=True)
        pictures = [
            Picture(tuple(Object(*o) for o in objects), background)
            for objects, background in saved["pictures"]
        ]
        return cls(pictures, saved["latents"], saved["weights"], saved["scale_factor"])

    def draw(self, count: int, generator: torch.Generator) -> tuple[list[Picture], Tensor]:
        rows = torch.multinomial(self.weights, count, replacement=True, generator=generator)
        return [self.pictures[i] for i in rows.tolist()], self.latents[rows].float()


def plan_pictures(
    source: PictureSource, colours_each: int, pairs: int, seed: int = 3
) -> tuple[list[Picture], Tensor]:
    """Every emoji on white, mirrored where it may be, on `colours_each` colours (in proportion to its
    weight), and pairs.

    The weights give each part the share of the recipe: `source.white`, `source.pairs`, `source.mirror`.
    """
    rng = random.Random(seed)
    pictures: list[Picture] = []
    weights: list[float] = []

    def add(picture: Picture, weight: float) -> None:
        if not source.is_held(picture):
            pictures.append(picture)
            weights.append(weight)

    total = sum(source.weights)
    for index, own in enumerate(source.weights):
        share = own / total * (1 - source.pairs)
        mirrored = source.mirror if mirrors(source.emoji[index]) else 0.0
        add(Picture((Object(index),)), share * source.white * (1 - mirrored))
        if mirrored:
            add(Picture((Object(index, mirrored=True),)), share * source.white * mirrored)
        count = max(1, round(colours_each * own))
        for _ in range(count):
            item = Object(index, mirrored=rng.random() < mirrored)
            add(Picture((item,), source.colour(rng)), share * (1 - source.white) / count)
    for _ in range(pairs):
        add(source.draw_pair(rng), source.pairs / pairs)
    return pictures, torch.tensor(weights, dtype=torch.float64)


def encode_pool(vae: AutoencoderKL, painter: Painter, pictures: list[Picture], weights: Tensor) -> LatentPool:
    """Latents of all pictures, scaled to a standard deviation of 1."""
    parts = [encode_all(vae, painter.paint(pictures[i : i + 16])) for i in range(0, len(pictures), 16)]
    latents = torch.cat(parts)
    scale_factor = float(1 / latents.std())
    return LatentPool(pictures, (latents * scale_factor).half(), weights, scale_factor)
