"""Stage 2a: pictures encoded once. The diffusion stage sees each latent many times, with a new caption and
new noise each time.
"""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import torch
from torch import Tensor

from minisd.models.vae import AutoencoderKL

from .pictures import Object, Painter, Picture, PictureSource, mirrors
from .vae import encode_all


class LatentPool:
    """Pictures and their scaled latents, fp16 [n, 4, 16, 16]."""

    def __init__(self, pictures: list[Picture], latents: Tensor, scale_factor: float) -> None:
        self.pictures, self.latents, self.scale_factor = pictures, latents, scale_factor

    def save(self, path: Path) -> None:
        rows = [
            ([(o.index, o.place, o.mirrored) for o in p.objects], p.background, p.small, p.count, p.style)
            for p in self.pictures
        ]
        torch.save({"pictures": rows, "latents": self.latents, "scale_factor": self.scale_factor}, path)

    @classmethod
    def load(cls, path: Path) -> LatentPool:
        saved = torch.load(path, weights_only=True)
        pictures = [
            Picture(tuple(Object(*o) for o in objects), *rest) for objects, *rest in saved["pictures"]
        ]
        return cls(pictures, saved["latents"], saved["scale_factor"])

    def draw(self, count: int, weights: Tensor, generator: torch.Generator) -> tuple[list[Picture], Tensor]:
        """`count` pictures and their latents, float32; `weights`: see `proportions`."""
        rows = torch.multinomial(weights, count, replacement=True, generator=generator)
        return [self.pictures[i] for i in rows.tolist()], self.latents[rows].float()


def plan_pictures(
    source: PictureSource, colours_each: int, pairs: int, others: int, seed: int = 3
) -> list[Picture]:
    """Every emoji on white, mirrored where it may be, on `colours_each` colours (in proportion to its
    weight), `pairs` pictures of two objects, and `others` of each other kind; nothing that is held out.
    """
    rng = random.Random(seed)
    pictures: list[Picture] = []
    for index, own in enumerate(source.weights):
        pictures.append(Picture((Object(index),)))
        if mirrors(source.emoji[index]):
            pictures.append(Picture((Object(index, mirrored=True),)))
        for _ in range(max(1, round(colours_each * own)) if colours_each else 0):
            turned = mirrors(source.emoji[index]) and rng.random() < source.mirror
            pictures.append(Picture((Object(index, mirrored=turned),), source.colour(rng)))
    pictures += [source.draw(rng, "pair") for _ in range(pairs)]
    pictures += [source.draw(rng, kind) for kind in ("count", "small", "style") for _ in range(others)]
    return [p for p in pictures if not source.is_held(p)]


def proportions(source: PictureSource, pictures: list[Picture]) -> Tensor:
    """How often each picture is drawn, float64 [n], so that objects, kinds and mirrored objects have the
    shares of `source`, however many pictures of each there are.
    """
    share = source.shares.of_kinds()
    # pictures of these kinds were drawn with the weights of their objects; the others stand there once each
    drawn = {"pair", "count", "small", "style"}

    def group(picture: Picture) -> tuple[int, str, bool]:
        first = picture.objects[0]
        return (
            (-1, picture.kind, False)
            if picture.kind in drawn
            else (first.index, picture.kind, first.mirrored)
        )

    groups = [group(p) for p in pictures]
    number = Counter(groups)
    total = sum(source.weights)
    weights = []
    for index, kind, mirrored in groups:
        weight = share[kind] / number[index, kind, mirrored]
        if kind not in drawn:
            weight *= source.weights[index] / total
            if mirrors(source.emoji[index]):
                weight *= source.mirror if mirrored else 1 - source.mirror
        weights.append(weight)
    return torch.tensor(weights, dtype=torch.float64)


def encode_pool(
    vae: AutoencoderKL, painter: Painter, pictures: list[Picture], scale_factor: float | None = None
) -> LatentPool:
    """Latents of all pictures, scaled to a standard deviation of 1, or by the factor a UNet has learned."""
    parts = [encode_all(vae, painter.paint(pictures[i : i + 16])) for i in range(0, len(pictures), 16)]
    latents = torch.cat(parts)
    scale_factor = float(1 / latents.std()) if scale_factor is None else scale_factor
    return LatentPool(pictures, (latents * scale_factor).half(), scale_factor)
