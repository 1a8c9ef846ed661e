"""Random numbers: one counter-based stream per image, so that image i of a batch is the picture that seed + i
gives alone.

Philox4x32-10 of Salmon et al. 2011 (Random123) with the counter layout of CUDA's generator as the community's
"NV" source uses it: counter = (draw, 0, element, 0), key = seed, Box-Muller on the first two words.
Box-Muller runs in float64 and is rounded to float32 once, so the bits are the same on every machine: torch's
own CPU normals differ between instruction sets. `torch_normal` gives torch's CPU generator instead, as
diffusers and A1111's "CPU" source draw.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
WEYL = (0x9E3779B9, 0xBB67AE85)
MASK, HALF = np.uint64(0xFFFFFFFF), np.uint64(32)
COUNTERS = 1 << 16  # that Normals mixes at once: 4.5 MiB of memory to work in


def philox4x32(counter: np.ndarray, key: tuple[int, int]) -> np.ndarray:
    """Ten rounds of Philox4x32: counter uint32 [4, n], key two 32-bit words -> uint32 [4, n]."""
    words = counter.astype(np.uint64)
    mix(words, np.empty_like(words[:2]), key)
    return words.astype(np.uint32)


def mix(words: np.ndarray, products: np.ndarray, key: tuple[int, int]) -> None:
    """The ten rounds, in place: words uint64 [4, ...] below 2^32; products uint64 [2, ...] is overwritten."""
    (c0, c1, c2, c3), (first, second) = words, products
    k0, k1 = key
    for _ in range(10):
        np.multiply(c0, MULTIPLIERS[0], out=first)  # 32 x 32 -> 64 bits
        np.multiply(c2, MULTIPLIERS[1], out=second)
        np.right_shift(second, HALF, out=c0)
        np.bitwise_xor(c0, c1, out=c0)
        np.bitwise_xor(c0, np.uint64(k0), out=c0)
        np.right_shift(first, HALF, out=c2)
        np.bitwise_xor(c2, c3, out=c2)
        np.bitwise_xor(c2, np.uint64(k1), out=c2)
        np.bitwise_and(second, MASK, out=c1)
        np.bitwise_and(first, MASK, out=c3)
        k0, k1 = (k0 + WEYL[0]) & 0xFFFFFFFF, (k1 + WEYL[1]) & 0xFFFFFFFF


def unit(words: np.ndarray, out: np.ndarray) -> np.ndarray:
    """Words as numbers in (0, 1), float64, into `out`: no 0, so that their logarithm stays finite."""
    np.multiply(words.view(np.int64), 2.0**-32, out=out)
    return np.add(out, 2.0**-33, out=out)


def key_of(seed: int) -> tuple[int, int]:
    return seed & 0xFFFFFFFF, seed >> 32 & 0xFFFFFFFF


def philox_normal(seed: int, draw: int, shape: Sequence[int]) -> Tensor:
    """Standard normal numbers, float32 CPU tensor of `shape`, a pure function of (seed, draw, place in the
    tensor).

    seed: 0 .. 2^64 - 1. draw: 0 for the initial noise, then 1, 2, ... for the noise of each step.
    """
    n = math.prod(shape)
    words, products = np.zeros((4, n), dtype=np.uint64), np.empty((2, n), dtype=np.uint64)
    words[0], words[2] = draw, np.arange(n, dtype=np.uint64)
    mix(words, products, key_of(seed))
    radius, angle = products.view(np.float64)
    np.sqrt(np.multiply(np.log(unit(words[0], radius), out=radius), -2.0, out=radius), out=radius)
    np.multiply(unit(words[1], angle), 2.0 * math.pi, out=angle)
    normal = np.multiply(radius, np.sin(angle, out=angle), out=radius)
    return torch.from_numpy(normal.astype(np.float32).reshape(tuple(shape)))


def philox_normals(seed: int, draw: int, shape: Sequence[int]) -> Tensor:
    """As philox_normal, other numbers, at half its cost: all four words of a counter and both halves of
    Box-Muller are used, as no other program's numbers must be met. counter = (draw, 0, element / 4, 1)."""
    return torch.from_numpy(Normals(math.prod(shape)).drawn(seed, [draw])[0].reshape(tuple(shape)))


class Normals:
    """Draws of `philox_normals`, n numbers each, many at a time: each of numpy's calls then works for long
    without Python's lock, which a solver in another thread wants. Holds memory to work in: not for two
    threads at once."""

    def __init__(self, n: int) -> None:
        self.n, self.quarter = n, -(-n // 4)
        self.at_once = max(1, COUNTERS // self.quarter)
        self.words = np.empty((4, self.at_once, self.quarter), dtype=np.uint64)
        self.products = np.empty((2, self.at_once, self.quarter), dtype=np.uint64)
        self.cosine = np.empty((self.at_once, self.quarter))

    def drawn(self, seed: int, draws: Sequence[int]) -> np.ndarray:
        """float32 [len(draws), n]."""
        out = np.empty((len(draws), 4, self.quarter), dtype=np.float32)
        for begin in range(0, len(draws), self.at_once):
            self.fill(out[begin : begin + self.at_once], seed, draws[begin : begin + self.at_once])
        return out.reshape(len(draws), -1)[:, : self.n]

    def fill(self, out: np.ndarray, seed: int, draws: Sequence[int]) -> None:
        count = len(draws)
        words, products, cosine = self.words[:, :count], self.products[:, :count], self.cosine[:count]
        words[0], words[1] = np.array(draws, dtype=np.uint64)[:, None], 0
        words[2], words[3] = np.arange(self.quarter, dtype=np.uint64), 1
        mix(words, products, key_of(seed))
        radius, angle = products.view(np.float64)
        for pair in (0, 1):
            np.log(unit(words[2 * pair], radius), out=radius)
            np.sqrt(np.multiply(radius, -2.0, out=radius), out=radius)
            np.multiply(unit(words[2 * pair + 1], angle), 2.0 * math.pi, out=angle)
            np.multiply(radius, np.cos(angle, out=cosine), out=cosine)
            np.multiply(radius, np.sin(angle, out=angle), out=angle)
            out[:, pair], out[:, 2 + pair] = angle, cosine


def torch_normal(seed: int, draw: int, shape: Sequence[int]) -> Tensor:
    """The (draw + 1)th `torch.randn(shape)` of a CPU generator seeded with `seed`: float32.

    Sequential by nature: earlier draws are made and thrown away, so a draw stays a pure function of its
    arguments.
    """
    generator = torch.Generator("cpu").manual_seed(seed)
    for _ in range(draw):
        torch.randn(tuple(shape), generator=generator)
    return torch.randn(tuple(shape), generator=generator)


def cuda_normal(seed: int, draw: int, shape: Sequence[int]) -> Tensor:
    """As `torch_normal`, drawn by torch's generator of the first CUDA device: A1111's "GPU" source. float32
    on the CPU."""
    generator = torch.Generator("cuda").manual_seed(seed)
    for _ in range(draw):
        torch.randn(tuple(shape), generator=generator, device="cuda")
    return torch.randn(tuple(shape), generator=generator, device="cuda").cpu()


Normal = Callable[[int, int, Sequence[int]], Tensor]
SOURCES: dict[str, Normal] = {"philox": philox_normal, "torch": torch_normal, "cuda": cuda_normal}


def batch_normal(source: str, seeds: Sequence[int], draw: int, shape: Sequence[int]) -> Tensor:
    """Draw number `draw` of every image: float32 [len(seeds), *shape]; row i depends on seeds[i] alone."""
    return torch.stack([SOURCES[source](seed, draw, shape) for seed in seeds])
