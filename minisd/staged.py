"""The prompts of one pass as its UNet takes them: read by the text encoder of each stage, where adapters act
in a part of the run, and with the guidance scale, where a model is told it."""

from __future__ import annotations

from dataclasses import replace

import torch

from minisd.loras import Stages
from minisd.model import Model
from minisd.models.unet import guidance_embedding
from minisd.request import Request
from minisd.text.conditioning import Conditioning, Encoded, Prompts, encode_request


def encode_stages(staged: Stages, request: Request, steps: int) -> Encoded:
    """The prompts over a run, as each stage's text encoders read them."""
    begin, timeline, encoded = 0, list[tuple[int, Prompts]](), list[Encoded]()
    for end, model in staged.models:
        encoded.append(encode_request(model, request, steps))
        timeline += [(min(e, end), p) for e, p in encoded[-1].timeline if e > begin]
        timeline = [*[t for t in timeline if t[0] < end], next(t for t in timeline if t[0] == end)]
        begin = end
    return replace(encoded[0], timeline=tuple(timeline))


def told_guidance(encoded: Encoded, model: Model, scale: float) -> Encoded:
    """Prompts whose y ends with the guidance scale, for a model that is told it (LCM)."""
    dim = model.config.unet.guidance_dim
    if dim is None:
        return encoded

    def told(c: Conditioning) -> Conditioning:
        w = guidance_embedding(scale, dim).to(c.context)
        return replace(c, y=w if c.y is None else torch.cat([c.y, w], dim=1))

    timeline = tuple(
        (end, Prompts(tuple((told(c), w) for c, w in p.conds), told(p.uncond))) for end, p in encoded.timeline
    )
    return replace(encoded, timeline=timeline)
