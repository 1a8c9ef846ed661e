"""Brownian noise for SDE solvers: increments over intervals of sigma that agree with each other, whoever asks
for what and when.

A virtual Brownian tree (Li et al. 2020, arXiv:2001.01328, section 4): W at the points that halve [sigma_min,
sigma_max] in log sigma again and again follows from its neighbours one level up and a counter-based draw, so
W(t) is a pure function of (seed, t). noise(a, b) is (W(a) - W(b)) / sqrt(|a - b|), of unit variance; halves
of an interval add up to the whole. The tree ends at depth 20: levels a hundred-thousandth of themselves apart
are told apart, at both ends of the range alike. The last draw, between two points of it, is keyed by t
itself. The draws are Philox's whatever the request's rng is: a generator that only runs forward cannot be
asked for a point.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from minisd.samplers.noise import philox_normals
from minisd.samplers.step import Noise

DEPTH = 20
TREE = 1 << 31  # draws of the tree are numbered from here: an image's other draws lie below


class BrownianPath:
    """W of one image. Holds a bounded cache of points for speed; the values do not depend on it."""

    def __init__(self, seed: int, shape: Sequence[int], low: float, high: float) -> None:
        self.low, self.high = low, high
        self.draw = lambda number: philox_normals(seed, number, shape).double()
        self.end = self.draw(TREE) * math.sqrt(high - low)
        self.point = lru_cache(maxsize=2 * DEPTH)(self._point)
        self.at = lru_cache(maxsize=8)(self._at)  # a step ends where the next begins

    def _point(self, level: int, index: int) -> Tensor:
        """W at the point index / 2^level of the way from low to high, less W(low)."""
        if index == 0:
            return torch.zeros_like(self.end)
        if level == 0:
            return self.end
        if index % 2 == 0:
            return self.point(level - 1, index // 2)
        left, right = self.point(level - 1, index // 2), self.point(level - 1, index // 2 + 1)
        ends = self.place(level - 1, index // 2), self.place(level - 1, index // 2 + 1)
        return bridge(left, right, *ends, self.place(level, index), self.draw(TREE + (1 << level) + index))

    def place(self, level: int, index: int) -> float:
        """The point's sigma: evenly in log sigma, since schedules step by parts of sigma."""
        return self.low * (self.high / self.low) ** (index / 2**level)

    def _at(self, t: float) -> Tensor:
        """W(t) - W(low), float64. t is clamped to the range."""
        t = min(max(t, self.low), self.high)
        share = math.log(t / self.low) / math.log(self.high / self.low) * 2**DEPTH
        index = min(int(share), 2**DEPTH - 1)
        a, b = self.place(DEPTH, index), self.place(DEPTH, index + 1)
        number = TREE + (1 << DEPTH + 1) + int((share - index) * 2**30)
        drawn = self.draw(number % 2**32)
        return bridge(self.point(DEPTH, index), self.point(DEPTH, index + 1), a, b, t, drawn)


def bridge(left: Tensor, right: Tensor, a: float, b: float, t: float, drawn: Tensor) -> Tensor:
    """W(t), given W at a and b on both sides of it and a unit normal draw."""
    share = min(max((t - a) / (b - a), 0.0), 1.0)  # rounding of a and b
    return left + share * (right - left) + drawn * math.sqrt((b - a) * share * (1 - share))


def brownian_noise(
    seeds: Sequence[int], shape: Sequence[int], low: float, high: float, like: Tensor
) -> Noise:
    """`noise(sigma, sigma_next)` for a batch: row i is a Brownian path of seeds[i] alone, on like's device
    and dtype."""
    paths = [BrownianPath(seed, shape, low, high) for seed in seeds]

    def noise(sigma: float, sigma_next: float) -> Tensor:
        scale = abs(sigma - sigma_next) ** -0.5
        return torch.stack([(p.at(sigma) - p.at(sigma_next)) * scale for p in paths]).to(like)

    return noise
