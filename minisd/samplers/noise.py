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
MASK = np.uint64(0xFFFFFFFF)


def philox4x32(counter: np.ndarray, key: tuple[int, int]) -> np.ndarray:
    """Ten rounds of Philox4x32: counter uint32 [4, n], key two 32-bit words -> uint32 [4, n]."""
    c0, c1, c2, c3 = counter.astype(np.uint64)
    k0, k1 = key
    for _ in range(10):
        first, second = MULTIPLIERS[0] * c0, MULTIPLIERS[1] * c2  # 32 x 32 -> 64 bits
        c0, c1, c2, c3 = (
            (second >> np.uint64(32)) ^ c1 ^ np.uint64(k0),
            second & MASK,
            (first >> np.uint64(32)) ^ c3 ^ np.uint64(k1),
            first & MASK,
        )
        k0, k1 = (k0 + WEYL[0]) & 0xFFFFFFFF, (k1 + WEYL[1]) & 0xFFFFFFFF
    return np.stack([c0, c1, c2, c3]).astype(np.uint32)


def philox_normal(seed: int, draw: int, shape: Sequence[int]) -> Tensor:
    """Standard normal numbers, float32 CPU tensor of `shape`, a pure function of (seed, draw, place in the
    tensor).

    seed: 0 .. 2^64 - 1. draw: 0 for the initial noise, then 1, 2, ... for the noise of each step.
    """
    n = math.prod(shape)
    counter = np.zeros((4, n), dtype=np.uint32)
    counter[0] = draw
    counter[2] = np.arange(n, dtype=np.uint32)
    words = philox4x32(counter, (seed & 0xFFFFFFFF, seed >> 32 & 0xFFFFFFFF)).astype(np.float64)
    u = words[0] * 2.0**-32 + 2.0**-33  # in (0, 1): the logarithm stays finite
    angle = (words[1] * 2.0**-32 + 2.0**-33) * (2.0 * math.pi)
    normal = np.sqrt(-2.0 * np.log(u)) * np.sin(angle)
    return torch.from_numpy(normal.astype(np.float32).reshape(tuple(shape)))


def philox_normals(seed: int, draw: int, shape: Sequence[int]) -> Tensor:
    """As philox_normal, other numbers, at a third of its cost: all four words of a counter and both halves of
    Box-Muller are used, as no other program's numbers must be met. counter = (draw, 0, element / 4, 1)."""
    n = math.prod(shape)
    quarter = -(-n // 4)
    counter = np.zeros((4, quarter), dtype=np.uint32)
    counter[0], counter[3] = draw, 1
    counter[2] = np.arange(quarter, dtype=np.uint32)
    words = philox4x32(counter, (seed & 0xFFFFFFFF, seed >> 32 & 0xFFFFFFFF)).astype(np.float64)
    u = words * 2.0**-32 + 2.0**-33
    radius, angle = np.sqrt(-2.0 * np.log(u[::2])), u[1::2] * (2.0 * math.pi)
    normal = np.concatenate([radius * np.sin(angle), radius * np.cos(angle)]).astype(np.float32)
    return torch.from_numpy(normal.reshape(-1)[:n].reshape(tuple(shape)))


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
