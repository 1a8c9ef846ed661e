"""The first noise of a request: that of its seeds. A variation blends it with another seed's, and `seed_size`
keeps the composition that a seed has at another size.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from minisd.errors import RequestError
from minisd.request import Request
from minisd.samplers.noise import batch_normal

Shape = tuple[int, int, int]  # c h w


def first_noise(request: Request, shape: Shape, draw: int = 0) -> Tensor:
    """Unit normal b c h w float32 on the CPU, with variation seeds and seed size: draw number `draw`."""
    source = request.forks.rng
    if source == "cuda" and not torch.cuda.is_available():
        raise RequestError(
            "rng cuda needs a CUDA device; philox gives the same numbers anywhere", field="rng"
        )
    seeds = request.seeds()
    if request.variation_strength > 0:
        seeds = [seeds[0]] * request.count  # pictures of a batch differ in their variation seed
    noise = resized_normal(source, seeds, shape, request, draw)
    if request.variation_strength == 0:
        return noise
    assert request.variation_seed is not None, "set by Request.for_model"
    others = [(request.variation_seed + i) % 2**64 for i in range(request.count)]
    blend = resized_normal(source, others, shape, request, draw)
    return torch.stack([slerp(a, b, request.variation_strength) for a, b in zip(noise, blend, strict=True)])


def resized_normal(source: str, seeds: list[int], shape: Shape, request: Request, draw: int) -> Tensor:
    """First noise of these seeds; with `seed_size`, that of the other size in the middle of fresh noise."""
    noise = batch_normal(source, seeds, draw, shape)
    if request.seed_size is None:
        return noise
    c, height, width = shape
    h, w = (side // 8 for side in request.seed_size)
    small = batch_normal(source, seeds, draw, (c, h, w))
    top, left = (height - h) // 2, (width - w) // 2
    noise[:, :, max(top, 0) : max(top, 0) + min(h, height), max(left, 0) : max(left, 0) + min(w, width)] = (
        small[
            :, :, max(-top, 0) : max(-top, 0) + min(h, height), max(-left, 0) : max(-left, 0) + min(w, width)
        ]
    )
    return noise


def slerp(a: Tensor, b: Tensor, share: float) -> Tensor:
    """Spherical interpolation of two noises of one image (Shoemake 1985): keeps their norm, unlike a straight
    blend. The angle is summed exactly, so that the bits do not depend on the machine."""
    cosine = inner(a, b) / math.sqrt(inner(a, a) * inner(b, b))
    angle = math.acos(min(max(cosine, -1.0), 1.0))
    if angle < 1e-3:
        return a + share * (b - a)
    weights = (math.sin((1 - share) * angle) / math.sin(angle), math.sin(share * angle) / math.sin(angle))
    return (weights[0] * a.double() + weights[1] * b.double()).to(a.dtype)


def inner(a: Tensor, b: Tensor) -> float:
    """The exact sum of products of float32 numbers, rounded once."""
    return math.fsum((a.double() * b.double()).flatten().tolist())
