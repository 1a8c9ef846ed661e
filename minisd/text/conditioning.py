"""What the UNet is told: prompts through the text encoders of the family, and the size vector of SDXL.

    texts -> spans with weights -> chunks -> each encoder -> context [1, n, context_dim] encoders side by side
                                                          -> y       [1, y_dim] pooled text, size and crop

Each distinct chunk is encoded once for a run, however often prompts come back to it. Papers: Rombach et al.
2022 (arXiv:2112.10752) for the context; Podell et al. 2023 (arXiv:2307.01952) section 2.2 for y.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from minisd.config import ModelConfig, TextUse
from minisd.errors import RequestError, quoted
from minisd.models.clip import TextEncoder, TextOutput
from minisd.models.unet import timestep_embedding
from minisd.request import Request
from minisd.text.account import Account, Reader, accounts_of, all_lines, emphasis_of
from minisd.text.blend import between
from minisd.text.chunks import Chunk, Cut, Learned
from minisd.text.editing import Clock
from minisd.text.embeddings import Embedding, Names
from minisd.text.emphasis import emphasised
from minisd.text.script import Line, Texts, clock_of, ends_of
from minisd.text.weights import Emphasis


@dataclass(frozen=True)
class Conditioning:
    """One prompt as the UNet sees it. Tensors have batch 1: every image of a request shares them."""

    context: Tensor  # 1 n context_dim
    y: Tensor | None  # 1 y_dim
    tokens: int  # of the prompt
    used: int  # of them that reached the encoders


@dataclass(frozen=True)
class Prompts:
    """What holds at one time: prompts with their weights, and what they are guided away from."""

    conds: tuple[tuple[Conditioning, float], ...]
    uncond: Conditioning


Timeline = tuple[tuple[int, Prompts], ...]  # (last step, counted from 1; what holds until then), the last one
# until the end of the run


@dataclass(frozen=True)
class Encoded:
    """A request's prompts over a run, and what became of them."""

    timeline: Timeline
    accounts: tuple[Account, ...]

    @property
    def tokens(self) -> tuple[int, int]:
        """Of the prompt as it begins: counted, and of them read."""
        conds = [c for c, _ in self.timeline[0][1].conds]
        return sum(c.tokens for c in conds), sum(c.used for c in conds)


def brought(encoded: Encoded, device: torch.device, dtype: torch.dtype) -> Encoded:
    """The prompts where the UNet computes and in what it computes. Each is moved once, however often it is
    said; itself where it is there already."""
    made: dict[int, Conditioning] = {}

    def one(c: Conditioning) -> Conditioning:
        if id(c) not in made:
            y = None if c.y is None else c.y.to(device, dtype)
            made[id(c)] = replace(c, context=c.context.to(device, dtype), y=y)
        return made[id(c)]

    timeline = tuple(
        (end, Prompts(tuple((one(c), w) for c, w in p.conds), one(p.uncond))) for end, p in encoded.timeline
    )
    return replace(encoded, timeline=timeline)


class Encoders(Protocol):
    """What is needed of a loaded model."""

    @property
    def config(self) -> ModelConfig: ...
    @property
    def text_encoders(self) -> Sequence[TextEncoder]: ...
    @property
    def embeddings(self) -> Mapping[str, Embedding]: ...


def encode_request(model: Encoders, request: Request, steps: int, *, clock: Clock | None = None) -> Encoded:
    """The prompts of a request made whole by `Request.for_model` over a run of `steps` steps. clock: what
    numbers in prompts mean, where that is not `steps` (a second pass; a strength, under A1111's rule).

    Raises RequestError for prompts that are too long, join too many or are not for this model.
    """
    names = Names(model.embeddings.values()) if model.embeddings else None
    reader = Reader(request, names)
    lines = all_lines(request, clock_of(request, steps) if clock is None else clock)
    reach = [with_reach(line, steps) for line in lines]
    encoding = Encoding(model, request, reader)
    lengths = lengths_of(reach, reader, request)
    timeline = tuple((end, encoding.prompts(reach, lengths, end)) for end in ends_of(reach, steps))
    return Encoded(timeline, accounts_of(reach, reader, steps))


def with_reach(line: Line, steps: int) -> Line:
    """The line without what would be said after the last step."""
    begins = [1, *(end + 1 for end, _ in line.moments)]
    kept = tuple(moment for begin, moment in zip(begins, line.moments, strict=False) if begin <= steps)
    return Line(line.field, line.weight, kept)


def lengths_of(lines: Sequence[Line], reader: Reader, request: Request) -> list[int]:
    """Chunks that each line's contexts are filled up to with empty ones: as many as the longest of all has,
    or the longest of the line."""
    own = [
        max(len(made.chunks) for _, texts in line.moments for made in reader.cuts(line, texts))
        for line in lines
    ]
    return own if request.forks.chunk_padding == "own" else [max(own)] * len(own)


def pooled_width(config: ModelConfig) -> int:
    """Width of the pooled text at the front of y."""
    return next(u.config.projection_dim or 0 for u in config.text if u.pooled)


class Encoding:
    """The text encoders at work on one request; what they gave for each chunk is kept until it is done."""

    def __init__(self, model: Encoders, request: Request, reader: Reader) -> None:
        self.model = model
        self.request = request
        self.reader = reader
        self.rule: Emphasis = emphasis_of(request)
        self._outputs: dict[tuple[int, tuple[int, ...], tuple[Learned, ...]], TextOutput] = {}
        self._made: dict[tuple[Texts, int, bool], Conditioning] = {}

    def prompts(self, lines: Sequence[Line], lengths: Sequence[int], step: int) -> Prompts:
        """What holds in a step."""
        made = [self.said(line, n, step) for line, n in zip(lines, lengths, strict=True)]
        fields = [line.field for line in lines]
        conds = [(c, line.weight) for c, line in zip(made, lines, strict=True) if line.field == "prompt"]
        others = [(c, line.weight) for c, line in zip(made, lines, strict=True) if line.field == "prompt_to"]
        if conds and others:
            conds = [self.mixed(a, b) for a, b in zip(conds, others, strict=True)]
        conds = conds or others
        conds = [(c, w) for c, w in conds if w != 0.0] or conds  # weight 0 is as if it were not there
        longest = max(c.context.shape[1] for c, _ in conds)
        uncond = made[fields.index("negative_prompt")]
        return Prompts(tuple((stretched(c, longest), w) for c, w in conds), self.dropped(uncond))

    def said(self, line: Line, chunks: int, step: int) -> Conditioning:
        """One line in a step, filled up to `chunks`."""
        texts, negative = line.at(step), line.field == "negative_prompt"
        key = (texts, chunks, negative)
        if key not in self._made:
            self._made[key] = self.conditioning(self.reader.cuts(line, texts), chunks, negative)
        return self._made[key]

    def conditioning(self, cuts: tuple[Cut, Cut], chunks: int, negative: bool) -> Conditioning:
        contexts, pooled, config = [], None, self.model.config
        for index, use in enumerate(config.text):
            made = cuts[1] if use.part == "text_encoder_2" else cuts[0]
            rows = [*made.chunks, *[Chunk()] * (chunks - len(made.chunks))]
            hidden = [emphasised(c, lambda c, i=index: self.output(i, c).hidden, self.rule) for c in rows]
            contexts.append(torch.cat(hidden, dim=1))
            if use.pooled:
                pooled = self.output(index, rows[0]).pooled
        y = None
        if config.size_conditioning != "none":
            assert pooled is not None
            request = self.request
            aesthetic = request.negative_aesthetic_score if negative else request.aesthetic_score
            y = torch.cat([pooled, size_embedding(request, config, aesthetic).to(pooled)], dim=1)
        return Conditioning(torch.cat(contexts, dim=-1), y, cuts[0].counted, cuts[0].used)

    def output(self, index: int, chunk: Chunk) -> TextOutput:
        """What encoder `index` gives for a chunk, whatever its weights. One chunk at a time: the same numbers
        whatever stands beside it."""
        key = (index, chunk.ids, chunk.learned)
        if key not in self._outputs:
            use, encoder = self.model.config.text[index], self.model.text_encoders[index]
            device = encoder.place or next(encoder.parameters()).device
            skip = use.skip if self.request.clip_skip is None else self.request.clip_skip - 1
            self._outputs[key] = encoder(
                torch.tensor([chunk.row(use.pad_id)], device=device),
                skip=skip,
                final_norm=use.final_norm,
                pooled=use.pooled,
                learned=[(item.place + 1, vectors_for(item.embedding, use)) for item in chunk.learned],
            )
        return self._outputs[key]

    def mixed(
        self, a: tuple[Conditioning, float], b: tuple[Conditioning, float]
    ) -> tuple[Conditioning, float]:
        """Between `prompt` and `prompt_to`; sizes are the same on both sides."""
        share, path = self.request.prompt_blend, self.request.prompt_path
        longest = max(c.context.shape[1] for c, _ in (a, b))
        one, two = stretched(a[0], longest), stretched(b[0], longest)
        y = one.y
        if one.y is not None and two.y is not None:
            width = pooled_width(self.model.config)
            pooled = between(one.y[:, :width], two.y[:, :width], share, path)
            y = torch.cat([pooled, one.y[:, width:]], dim=1)
        context = between(one.context, two.context, share, path)
        return Conditioning(context, y, one.tokens, one.used), a[1] + share * (b[1] - a[1])

    def dropped(self, uncond: Conditioning) -> Conditioning:
        """The negative prompt, or zeros where it is empty and the model was trained so: dropped captions were
        zeros after the encoders, not the encoding of an empty text."""
        request, config = self.request, self.model.config
        empty = request.negative_prompt == "" and not request.negative_prompt_2
        if not empty or config.size_conditioning != "sdxl" or request.forks.empty_negative != "zeros":
            return uncond
        assert uncond.y is not None
        y = uncond.y.clone()
        y[:, : pooled_width(config)] = 0
        return Conditioning(torch.zeros_like(uncond.context), y, uncond.tokens, uncond.used)


def stretched(cond: Conditioning, length: int) -> Conditioning:
    """The context made as long as those it stands beside by repeating its last vector, as A1111 does."""
    missing = length - cond.context.shape[1]
    if missing == 0:
        return cond
    last = cond.context[:, -1:].expand(-1, missing, -1)
    return Conditioning(torch.cat([cond.context, last], dim=1), cond.y, cond.tokens, cond.used)


def vectors_for(embedding: Embedding, use: TextUse) -> Tensor:
    """The vectors of a learned word for one text encoder. Raises RequestError where they are not made for
    it."""
    vectors = embedding.vectors.get(use.part)
    if vectors is None or vectors.shape[1] != use.config.width:
        what = (
            f"has none for {use.part}"
            if vectors is None
            else f"is {vectors.shape[1]} wide; {use.part} takes {use.config.width}"
        )
        raise RequestError(
            f"the embedding {quoted(embedding.name)} {what}; it was made for another family of models. Leave "
            "its name out of the prompt",
            field="prompt",
        )
    return vectors


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
