"""Textual inversions (Gal et al. 2022, arXiv:2208.01618) in every published form: vectors by their width.

    original, A1111 .pt                  {"string_to_param": {"*": [n, w]}, "name": ...}
    diffusers learned_embeds             {"<token>": [w] or [n, w]}
    kohya, A1111 .safetensors            emb_params [n, w]
    SDXL                                 clip_l [n, 768] and clip_g [n, 1280]

The last axis says the encoder. A pair serves SDXL, and its refiner by clip_g; a file with one of the two
serves the models that have this encoder alone.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from minisd.errors import CheckpointError, listed, quoted
from minisd.weights_loader.open import open_source
from minisd.weights_loader.part import check_finite
from minisd.weights_loader.source import TensorSource

MAX_VECTORS = 75  # tokens that one context holds
PAIR = ("clip_l", "clip_g")
SINGLE = ("emb_params", "string_to_param", "*")


@dataclass(frozen=True, eq=False)
class EmbeddingVectors:
    """A name and its vectors k w: (slot, tensor) for each encoder, k the same in all. The slot is "clip_l" or
    "clip_g" where the file says it; else None, and the width tells."""

    name: str
    vectors: tuple[tuple[str | None, Tensor], ...]


def open_embedding(path: str | os.PathLike[str]) -> EmbeddingVectors:
    """Reads an embedding file; it is called as the file is. Raises CheckpointError."""
    source = open_source(path)
    try:
        return embedding_vectors(source, {n: n for n in source.tensors}, source.path.stem)
    finally:
        source.close()


def embedding_vectors(source: TensorSource, names: Mapping[str, str], name: str) -> EmbeddingVectors:
    """The embedding `name` from tensors of an opened container. names: {tensor: what it would be called in a
    file of its own}."""
    where = f"{quoted(source.path.name)}: the embedding {quoted(name)}"
    own = {short: tensor for tensor, short in names.items()}
    if any(key in PAIR for key in own):
        chosen = {short: tensor for short, tensor in own.items() if short in PAIR}
        fits = len(chosen) == len(own)
    else:
        known = {short: t for short, t in own.items() if short.split(".")[0] in SINGLE}
        chosen = known or own
        fits = len(chosen) == 1
    if not fits:
        raise CheckpointError(
            f"{where} has the tensors {listed(sorted(own))}; expected one, or clip_l and clip_g"
        )
    vectors = tuple(
        (short if short in PAIR else None, read_vectors(source, tensor, where))
        for short, tensor in chosen.items()
    )
    counts = sorted({len(v) for _, v in vectors})
    if len(counts) > 1:
        raise CheckpointError(f"{where} has {counts} vectors for its two encoders; expected as many for each")
    return EmbeddingVectors(name, vectors)


def read_vectors(source: TensorSource, tensor: str, where: str) -> Tensor:
    """k w, bounds checked before reading."""
    info = source.tensors[tensor]
    if len(info.shape) not in (1, 2) or 0 in info.shape or not info.dtype.is_floating_point:
        raise CheckpointError(
            f"{where}: {quoted(tensor)} is {info.dtype} {list(info.shape)}; expected numbers [vectors, width]"
        )
    count = info.shape[0] if len(info.shape) == 2 else 1
    if count > MAX_VECTORS:
        raise CheckpointError(f"{where} has {count:,} vectors; at most {MAX_VECTORS} fit into a prompt")
    values = source.read(tensor)
    check_finite(values, tensor, info.dtype)
    return values.reshape(count, -1)
