"""How the weight of a word acts on what a text encoder gave for one chunk.

    mean     z * w, then all of it scaled so that its mean is what it was (A1111: "Original")
    plain    z * w                                                        (A1111: "No norm")
    compel   above 1: away from the empty prompt, e + (z - e) * w; below 1: towards the prompt without the
             words, by tan((1 - w) pi / 2) parts of it to one part of the whole
    ignore   nothing

A chunk without weights is not touched under any of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from minisd.errors import RequestError
from minisd.text.chunks import Chunk
from minisd.text.weights import Emphasis

Encode = Callable[[Chunk], Tensor]  # a chunk's hidden states 1 77 width, whatever its weights
LEAST = 1e-9  # compel: a word of weight 0 or less has this one


def emphasised(chunk: Chunk, encode: Encode, rule: Emphasis) -> Tensor:
    """Hidden states 1 77 width of a chunk, its weights applied.

    Raises RequestError where "mean" has no mean left to scale.
    """
    z = encode(chunk)
    if rule == "ignore" or not chunk.weighted:
        return z
    if rule == "compel":
        return blended(chunk, encode)
    weights = torch.tensor(chunk.multipliers(), dtype=z.dtype, device=z.device)[None, :, None]
    weighted = z * weights
    if rule == "plain":
        return weighted
    ratio = z.mean() / weighted.mean()
    if not torch.isfinite(ratio):
        raise RequestError(
            "the weights of the prompt cancel each other out, so that no mean is left to restore; change "
            "them or set emphasis to plain",
            field="prompt",
        )
    return weighted * ratio


def without(chunk: Chunk, start: int, end: int) -> Chunk:
    """The chunk with these of its tokens left out."""
    learned = tuple(
        type(item)(item.place - (end - start if item.place >= end else 0), item.embedding)
        for item in chunk.learned
        if not start <= item.place < end
    )
    return Chunk(chunk.ids[:start] + chunk.ids[end:], chunk.weights[:start] + chunk.weights[end:], learned)


def blended(chunk: Chunk, encode: Encode) -> Tensor:
    """Compel's rule."""
    empty = encode(Chunk())
    z = raised(chunk, encode, empty)
    parts, total = z, 1.0
    start = 0
    while start < len(chunk.ids):
        weight, end = chunk.weights[start], start + 1
        while end < len(chunk.ids) and chunk.weights[end] == weight:
            end += 1
        if weight < 1.0:
            share = math.tan((1.0 - max(weight, LEAST)) * math.pi / 2)
            parts = parts + share * raised(without(chunk, start, end), encode, empty)
            total += share
        start = end
    return parts / total


def raised(chunk: Chunk, encode: Encode, empty: Tensor) -> Tensor:
    """Words above 1 moved away from the empty prompt."""
    z = encode(chunk)
    up = [max(w, 1.0) for w in chunk.multipliers()]
    weights = torch.tensor(up, dtype=z.dtype, device=z.device)[None, :, None]
    return empty + (z - empty) * weights if max(up) > 1.0 else z
