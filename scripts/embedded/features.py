"""A space in which pictures of the same emoji lie close together, made by hand: it judges the model, so
nothing of the model's own may be in it.

Shape is histograms of oriented gradients (Dalal and Triggs 2005), colour is a blurred picture in opponent
axes, each at two scales; principal components of the sprites, whitened, make the parts comparable.
`Judge.check` says how often the space itself finds a sprite that was moved, scaled and blurred: no figure of
a model is worth more than that.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

BINS = 9  # orientations, without sign: 20 degrees each
CELLS = (8, 16)  # pixels between the middles of neighbouring cells; a cell is twice as wide
COMPONENTS = 192
# brightness, red against green, yellow against blue
OPPONENT = ((1 / 3, 1 / 3, 1 / 3), (0.5, -0.5, 0.0), (0.25, 0.25, -0.5))


def tent(x: Tensor, cell: int) -> Tensor:
    """Means under triangles two cells wide, one at each cell's middle: b c h h -> b c h/cell h/cell."""
    size = x.shape[-1]
    middles = (torch.arange(size // cell, dtype=x.dtype) + 0.5) * cell
    pixels = torch.arange(size, dtype=x.dtype) + 0.5
    ramps = (1 - (pixels - middles[:, None]).abs() / cell).clamp_min(0) / cell
    return ramps @ x @ ramps.T


def orientations(x: Tensor) -> Tensor:
    """Strength of edges by direction: b 3 H W -> b BINS H W. Of the three channels, that with the strongest
    edge counts at each pixel."""
    x = F.pad(x, (1, 1, 1, 1), mode="replicate")
    dx, dy = x[..., 1:-1, 2:] - x[..., 1:-1, :-2], x[..., 2:, 1:-1] - x[..., :-2, 1:-1]
    strength = (dx.square() + dy.square()).sqrt()
    best = strength.argmax(dim=1, keepdim=True)
    dx, dy, strength = (t.gather(1, best) for t in (dx, dy, strength))
    place = torch.atan2(dy, dx) / torch.pi * BINS  # one turn is 2 BINS; opposite directions share a bin
    distance = (place - torch.arange(BINS, dtype=x.dtype)[:, None, None]).remainder(BINS)
    return strength * (1 - torch.minimum(distance, BINS - distance)).clamp_min(0)


def described(pictures: Tensor) -> Tensor:
    """b 3 128 128 in [-1, 1] -> b d: shape and colour at two scales, each part of about length 1."""
    edges = orientations(pictures)
    axes = torch.tensor(OPPONENT, dtype=pictures.dtype)
    colours = torch.einsum("bchw,kc->bkhw", pictures, axes)
    parts = []
    for cell in CELLS:
        shape = tent(edges, cell)
        energy = F.avg_pool2d(shape.square().sum(1, keepdim=True), 3, 1, 1, count_include_pad=False)
        shape = shape / (energy + 0.002).sqrt()  # a faint inner line counts like a strong outline
        parts += [shape.flatten(1) / shape.shape[-1], tent(colours, cell).flatten(1) / (128 / cell)]
    return torch.cat(parts, dim=1)


def described_all(pictures: Tensor) -> Tensor:
    """`described` in parts that fit a processor's cache, two at a time."""
    with ThreadPoolExecutor(2) as pool:
        return torch.cat(list(pool.map(described, pictures.split(8))))


@dataclass(frozen=True)
class FeatureSpace:
    """`mean` [d] and `axes` [d, k] take descriptions to unit vectors; nearness is the cosine."""

    mean: Tensor
    axes: Tensor

    @classmethod
    def of(cls, pictures: Tensor, components: int = COMPONENTS) -> FeatureSpace:
        """Principal components of these pictures (b 3 128 128), whitened. The floor keeps axes in which
        sprites hardly differ from being stretched to the size of the others."""
        rows = described_all(pictures)
        mean = rows.mean(0)
        away = (rows - mean).double()
        # by way of the inner products: there are fewer pictures than numbers that describe one
        squares, columns = torch.linalg.eigh(away @ away.T)
        order = squares.argsort(descending=True)[:components]
        lengths = squares[order].clamp_min(1e-12).sqrt()
        axes = away.T @ columns[:, order] / lengths
        spread = lengths / len(rows) ** 0.5
        scale = 1 / (spread.square() + (0.5 * spread[len(spread) // 4]).square()).sqrt()
        return cls(mean, (axes * scale).float())

    def centred_on(self, pictures: Tensor) -> FeatureSpace:
        """The same axes with the mean of other pictures: the sprites on another background, or half as
        large."""
        return FeatureSpace(described_all(pictures).mean(0), self.axes)

    def __call__(self, pictures: Tensor) -> Tensor:
        """b 3 128 128 in [-1, 1] -> unit vectors b k."""
        rows = described_all(pictures)
        return F.normalize((rows - self.mean) @ self.axes, dim=1)


def disturbed(pictures: Tensor, generator: torch.Generator) -> Tensor:
    """Each picture moved by up to 5 pixels, scaled by 0.9 to 1.1, and blurred by a Gaussian of 1.5 pixels;
    what comes in at the border is the border's colour. b 3 h w -> b 3 h w."""
    b, _, h, _ = pictures.shape
    moved = (torch.rand(b, 2, generator=generator) * 2 - 1) * (10 / h)
    scale = 0.9 + 0.2 * torch.rand(b, generator=generator)
    grid = torch.zeros(b, 2, 3)
    grid[:, 0, 0] = grid[:, 1, 1] = 1 / scale
    grid[:, :, 2] = moved
    at = F.affine_grid(grid, list(pictures.shape), align_corners=False)
    x = F.grid_sample(pictures, at, mode="bilinear", padding_mode="border", align_corners=False)
    taps = torch.exp(-0.5 * (torch.arange(-4, 5, dtype=x.dtype) / 1.5) ** 2)
    kernel = (taps / taps.sum()).expand(3, 1, 1, 9)
    x = F.conv2d(F.pad(x, (4, 4, 4, 4), mode="replicate"), kernel, groups=3)
    return F.conv2d(x, kernel.transpose(2, 3), groups=3)
