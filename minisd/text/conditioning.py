"""What the UNet is told: prompts through the text encoders of the family, and the size vector of SDXL.

    prompt -> ids -> each encoder -> context [1, n, context_dim]   SDXL: encoders side by side
                                  -> y       [1, y_dim]            SDXL: pooled text and five or six numbers

Papers: Rombach et al. 2022 (arXiv:2112.10752) for the context; Podell et al. 2023 (arXiv:2307.01952) section
2.2 for y.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from minisd.config import ModelConfig, TextUse
from minisd.errors import RequestError
from minisd.models.clip import TextEncoder
from minisd.models.unet import timestep_embedding
from minisd.request import Request
from minisd.text.composition import split_prompt
from minisd.text.tokenizer import CHUNK, chunk, encode

MAX_CHUNKS = 20  # contexts of 75 tokens; the cost of cross-attention grows with them


@dataclass(frozen=True)
class Conditioning:
    """One prompt as the UNet sees it. Tensors have batch 1: every image of a request shares them."""

    context: Tensor  # 1 n context_dim
    y: Tensor | None  # 1 y_dim
    tokens: int  # of the prompt
    used: int  # of them that reached the encoders


@dataclass(frozen=True)
class Prompts:
    """What a request asks for: prompts with their weights, and what they are guided away from."""

    conds: tuple[tuple[Conditioning, float], ...]
    uncond: Conditioning


class Encoders(Protocol):
    """What is needed of a loaded model."""

    @property
    def config(self) -> ModelConfig: ...
    @property
    def text_encoders(self) -> Sequence[TextEncoder]: ...


def number_of_chunks(prompt_ids: list[int], request: Request, field: str) -> int:
    """Contexts that a prompt takes. Raises RequestError beyond MAX_CHUNKS."""
    if request.forks.long_prompt == "truncate":
        return 1
    chunks = max(1, -(-len(prompt_ids) // CHUNK))
    if chunks > MAX_CHUNKS:
        most = MAX_CHUNKS * CHUNK
        raise RequestError(
            f"the {field} has {len(prompt_ids):,} tokens; at most {most:,} are read. Shorten it",
            field=field,
        )
    return chunks


def encode_prompts(model: Encoders, request: Request) -> tuple[Conditioning, Conditioning]:
    """(conditional, unconditional) of a request with one prompt."""
    prompts = encode_composed(model, request)
    return prompts.conds[0][0], prompts.uncond


def encode_composed(model: Encoders, request: Request) -> Prompts:
    """All prompts of a request made whole by `Request.for_model`. Their contexts have the same length."""
    composed = request.forks.composition == "and"
    parts = split_prompt(request.prompt) if composed else [(request.prompt, 1.0)]
    ids = [(encode(text), weight) for text, weight in parts]
    negative_ids = encode(request.negative_prompt)
    counts = [number_of_chunks(i, request, "prompt") for i, _ in ids]
    chunks = max(*counts, number_of_chunks(negative_ids, request, "negative_prompt"))
    conds = [(encode_one(model, request, i, chunks, request.aesthetic_score), weight) for i, weight in ids]
    uncond = encode_one(model, request, negative_ids, chunks, request.negative_aesthetic_score)
    zeros = model.config.size_conditioning == "sdxl" and request.forks.empty_negative == "zeros"
    if zeros and request.negative_prompt == "":
        # in training, dropped captions were zeros after the encoders, not the encoding of an empty text
        assert uncond.y is not None
        y = uncond.y.clone()
        y[:, : pooled_width(model.config)] = 0
        uncond = Conditioning(torch.zeros_like(uncond.context), y, uncond.tokens, uncond.used)
    return Prompts(tuple(conds), uncond)


def pooled_width(config: ModelConfig) -> int:
    """Width of the pooled text at the front of y."""
    return next(u.config.projection_dim or 0 for u in config.text if u.pooled)


def encode_one(
    model: Encoders, request: Request, ids: list[int], chunks: int, aesthetic: float
) -> Conditioning:
    contexts, pooled = [], None
    for use, encoder in zip(model.config.text, model.text_encoders, strict=True):
        hidden, first = encode_with(encoder, use, ids, chunks, request.clip_skip)
        contexts.append(hidden)
        pooled = first if use.pooled else pooled
    y = None
    if model.config.size_conditioning != "none":
        assert pooled is not None
        y = torch.cat([pooled, size_embedding(request, model.config, aesthetic).to(pooled)], dim=1)
    return Conditioning(torch.cat(contexts, dim=-1), y, len(ids), min(len(ids), chunks * CHUNK))


def encode_with(
    encoder: TextEncoder, use: TextUse, ids: list[int], chunks: int, clip_skip: int | None
) -> tuple[Tensor, Tensor | None]:
    """(context [1, 77 * chunks, width], pooled [1, projection_dim] of the first chunk or None)."""
    device = next(encoder.parameters()).device
    rows = torch.tensor(chunk(ids, use.pad_id, chunks=chunks), device=device)  # chunks 77
    skip = use.skip if clip_skip is None else clip_skip - 1
    # one row at a time: the same numbers whatever the number of chunks
    outputs = [encoder(row[None], skip=skip, final_norm=use.final_norm, pooled=use.pooled) for row in rows]
    return torch.cat([o.hidden for o in outputs], dim=1), outputs[0].pooled


def size_embedding(request: Request, config: ModelConfig, aesthetic: float) -> Tensor:
    """Sinusoids [1, 256 * k] of SDXL's numbers: original height, width; crop top, left; target height, width.
    The refiner has the aesthetic score in place of the target size."""
    assert request.original_size is not None and request.target_size is not None, "set by Request.for_model"
    last = (aesthetic,) if config.size_conditioning == "refiner" else request.target_size
    numbers = torch.tensor([*request.original_size, *request.crop, *last], dtype=torch.float32)
    return timestep_embedding(numbers, size_width(config, len(numbers))).flatten()[None]


def size_width(config: ModelConfig, numbers: int) -> int:
    """Sinusoids per number: 256 in the released models; what is left of y in others."""
    assert config.unet.y_dim is not None
    return (config.unet.y_dim - pooled_width(config)) // numbers
