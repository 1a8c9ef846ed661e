"""Brownian noise for SDE solvers: increments over intervals of sigma that agree with each other, whoever asks
for what and when.

A virtual Brownian tree (Li et al. 2020, arXiv:2001.01328, section 4): W at the dyadic points of [sigma_min,
sigma_max] follows from its neighbours one level up and a counter-based draw, so W(t) is a pure function of
(seed, t). noise(a, b) is (W(a) - W(b)) / sqrt(|a - b|), of unit variance; halves of an interval add up to the
whole. The tree ends at depth 20, a millionth of the range; the last draw, between two points of it, is keyed
by t itself. The draws are Philox's whatever the request's rng is: a generator that only runs forward cannot
be asked for a point.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from minisd.samplers.noise import philox_normal
from minisd.samplers.step import Noise

DEPTH = 20
TREE = 1 << 31  # draws of the tree are numbered from here: an image's other draws lie below


class BrownianPath:
    """W of one image. Holds a bounded cache of points for speed; the values do not depend on it."""

    def __init__(self, seed: int, shape: Sequence[int], low: float, high: float) -> None:
        self.low, self.high = low, high
        self.draw = lambda number: philox_normal(seed, number, shape).double()
        self.end = self.draw(TREE) * math.sqrt(high - low)
        self.point = lru_cache(maxsize=2 * DEPTH)(self._point)

    def _point(self, level: int, index: int) -> Tensor:
        """W(low + index / 2^level of the range) - W(low)."""
        if index == 0:
            return torch.zeros_like(self.end)
        if level == 0:
            return self.end
        if index % 2 == 0:
            return self.point(level - 1, index // 2)
        middle = (self.point(level - 1, index // 2) + self.point(level - 1, index // 2 + 1)) / 2
        width = (self.high - self.low) / 2 ** (level - 1)
        return middle + self.draw(TREE + (1 << level) + index) * math.sqrt(width / 4)

    def at(self, t: float) -> Tensor:
        """W(t) - W(low), float64. t is clamped to the range."""
        share = min(max((t - self.low) / (self.high - self.low), 0.0), 1.0) * 2**DEPTH
        index = min(int(share), 2**DEPTH - 1)
        rest = share - index
        left = self.point(DEPTH, index)
        if rest == 0:
            return left
        right = self.point(DEPTH, index + 1)
        bridge = (self.high - self.low) / 2**DEPTH * rest * (1 - rest)
        number = TREE + (1 << DEPTH + 1) + int(rest * 2**30)
        return left + rest * (right - left) + self.draw(number % 2**32) * math.sqrt(bridge)


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
