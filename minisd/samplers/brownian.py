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
from threading import Lock

import numpy as np
import torch
from torch import Tensor

from minisd.samplers.noise import Normals
from minisd.samplers.step import Noise

DEPTH = 20
TREE = 1 << 31  # draws of the tree are numbered from here: an image's other draws lie below


class BrownianPath:
    """W of one image. Keeps the last way down the tree and the last values for speed; no value depends on
    it."""

    def __init__(self, seed: int, shape: Sequence[int], low: float, high: float) -> None:
        self.seed, self.low, self.high = seed, low, high
        self.normals, self.lock = Normals(math.prod(shape)), Lock()
        self.end = scaled(self.normals.drawn(seed, [TREE])[0], math.sqrt(high - low))
        self.way = list[tuple[int, np.ndarray]]()  # (index, W) of the point halving the interval, by level
        self.at = lru_cache(maxsize=8)(self._at)  # a step ends where the next begins

    def place(self, level: int, index: int) -> float:
        """Sigma of the point index / 2^level of the way from low to high: evenly in log sigma, since
        schedules step by parts of sigma."""
        return self.low * (self.high / self.low) ** (index / 2**level)

    def _at(self, t: float) -> np.ndarray:
        """W(t) - W(low), float64 [n]. t is clamped to the range."""
        with self.lock:
            return self.descended(min(max(t, self.low), self.high))

    def descended(self, t: float) -> np.ndarray:
        """W(t), by halving the interval around t down to the end of the tree."""
        share = math.log(t / self.low) / math.log(self.high / self.low) * 2**DEPTH
        index = min(int(share), 2**DEPTH - 1)
        # at each level the odd one of the two neighbours of t is new
        halves = [index >> (DEPTH - level) | 1 for level in range(1, DEPTH + 1)]
        known = 0
        while known < len(self.way) and self.way[known][0] == halves[known]:
            known += 1
        numbers = [TREE + (1 << level) + halves[level - 1] for level in range(known + 1, DEPTH + 1)]
        leaf = TREE + (1 << DEPTH + 1) + int((share - index) * 2**30)
        drawn = self.normals.drawn(self.seed, [*numbers, leaf % 2**32])
        way = self.way[:known]
        left, right = np.zeros_like(self.end), self.end
        for level, half in enumerate(halves, 1):
            if level > known:
                ends = self.place(level - 1, half // 2), self.place(level - 1, half // 2 + 1)
                own = drawn[level - 1 - known]
                way.append((half, bridge(left, right, *ends, self.place(level, half), own)))
            if index >> (DEPTH - level) & 1:
                left = way[level - 1][1]
            else:
                right = way[level - 1][1]
        self.way = way
        return bridge(left, right, self.place(DEPTH, index), self.place(DEPTH, index + 1), t, drawn[-1])


def bridge(
    left: np.ndarray, right: np.ndarray, a: float, b: float, t: float, drawn: np.ndarray
) -> np.ndarray:
    """W(t), given W at a and b on both sides of it and a unit normal draw: float64."""
    share = min(max((t - a) / (b - a), 0.0), 1.0)  # rounding of a and b
    out = np.subtract(right, left)
    np.add(left, np.multiply(out, share, out=out), out=out)
    return np.add(out, scaled(drawn, math.sqrt((b - a) * share * (1 - share))), out=out)


def scaled(drawn: np.ndarray, std: float) -> np.ndarray:
    return np.multiply(drawn, std, dtype=np.float64)


def brownian_noise(
    seeds: Sequence[int], shape: Sequence[int], low: float, high: float, like: Tensor
) -> Noise:
    """`noise(sigma, sigma_next)` for a batch: row i is a Brownian path of seeds[i] alone, on like's device
    and dtype."""
    paths = [BrownianPath(seed, shape, low, high) for seed in seeds]

    def noise(sigma: float, sigma_next: float) -> Tensor:
        scale = abs(sigma - sigma_next) ** -0.5
        rows = [(p.at(sigma) - p.at(sigma_next)) * scale for p in paths]
        return torch.from_numpy(np.stack(rows).reshape(len(paths), *shape)).to(like)

    return noise
