"""Changes to single passes of the UNet that guidance rules and pictures beside it ask for. Arguments of a
call, never state of the network."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import zip_longest
from typing import Protocol

import torch
from torch import Tensor


@dataclass(frozen=True)
class PictureTokens:
    """Keys and values b m c of a picture's tokens, and how strongly the attention to them is added to that to
    the text (IP-Adapter). One row may serve a whole batch."""

    k: Tensor
    v: Tensor
    weight: float

    def rows(self, batch: int) -> tuple[Tensor, Tensor]:
        return self.k.expand(batch, -1, -1), self.v.expand(batch, -1, -1)

    def row(self, image: int) -> PictureTokens:
        at = slice(image, image + 1) if len(self.k) > 1 else slice(None)
        return PictureTokens(self.k[at], self.v[at], self.weight)


@dataclass(frozen=True)
class Shift:
    """What is added to the tokens b n c that a projection reads (ControlNet-LLLite), times a weight for each
    row; one may serve a whole batch."""

    of: Callable[[Tensor], Tensor]
    weights: tuple[float, ...]

    def added(self, x: Tensor) -> Tensor:
        return x + rows_of(self.weights, x) * self.of(x)

    def row(self, image: int) -> Shift:
        return replace(
            self, weights=self.weights[image : image + 1] if len(self.weights) > 1 else self.weights
        )


@dataclass(frozen=True)
class ReferenceTokens:
    """Tokens b m c of another picture, at the place where this one's attend to themselves: these attend to
    both (reference-only). weights: for each row, how far towards that; one may serve a whole batch."""

    tokens: Tensor
    weights: tuple[float, ...]

    def row(self, image: int) -> ReferenceTokens:
        at = slice(image, image + 1)
        return ReferenceTokens(
            self.tokens[at] if len(self.tokens) > 1 else self.tokens,
            self.weights[at] if len(self.weights) > 1 else self.weights,
        )


def rows_of(weights: tuple[float, ...], like: Tensor) -> Tensor:
    """b 1 1"""
    return like.new_tensor(weights)[:, None, None]


Shifts = Mapping[str, tuple[Shift, ...]]  # by projection: "attn1.to_q"
NO_SHIFTS: Shifts = {}


Size = tuple[int, int]  # h w of a map of tokens
Then = Callable[[Tensor, Tensor, Size], Tensor]


class Regroup(Protocol):
    """Lets self-attention look at other groups of tokens than all of a picture. x: the tokens b n c of a map
    of `size`, normed: those that attention reads; then: attention, of what they were made. Returns b n c."""

    def __call__(self, x: Tensor, normed: Tensor, size: Size, then: Then) -> Tensor: ...


@dataclass(frozen=True)
class BlockEdit:
    """What to do differently in one transformer block: an `Edit`, for that block."""

    identity: bool = False
    observe: Callable[[Tensor, Tensor, int], None] | None = None
    record: Callable[[Tensor], None] | None = None
    pictures: tuple[PictureTokens, ...] = ()
    references: tuple[ReferenceTokens, ...] = ()
    shifts: Shifts = field(default_factory=dict)
    regroups: tuple[Regroup, ...] = ()
    size: Size = (0, 0)  # of the map, where tokens are regrouped

    def attended(self, x: Tensor, normed: Tensor, attention: Callable[[Tensor], Tensor]) -> Tensor:
        """Self-attention of normed, regrouped; x: the tokens before the norm."""

        def inside(groups: tuple[Regroup, ...], x: Tensor, normed: Tensor, size: Size) -> Tensor:
            if not groups:
                return attention(normed)
            return groups[0](x, normed, size, partial(inside, groups[1:]))

        return inside(self.regroups, x, normed, self.size)


NO_BLOCK_EDIT = BlockEdit()


@dataclass(frozen=True)
class Edit:
    """What to do differently in one SpatialTransformer.

    identity: self-attention looks at nothing but its own token (PAG, Ahn et al. 2024, arXiv:2403.17377).
    skip: the transformer is passed over (skip-layer guidance). observe: told q, k [b n c] and the number of
    heads of each self-attention (SAG, Hong et al. 2023, arXiv:2210.00939). record: told the index of each
    transformer block and the tokens that its self-attention reads. For each transformer block: pictures, what
    it attends to beside the text; references, beside itself; shifts, what is added before its projections.
    regroups: how tokens are grouped for self-attention, the first outermost.
    """

    identity: bool = False
    skip: bool = False
    observe: Callable[[Tensor, Tensor, int], None] | None = None
    record: Callable[[int, Tensor], None] | None = None
    pictures: tuple[tuple[PictureTokens, ...], ...] = ()
    references: tuple[tuple[ReferenceTokens, ...], ...] = ()
    shifts: tuple[Shifts, ...] = ()
    regroups: tuple[Regroup, ...] = ()

    def of_block(self, block: int, size: Size) -> BlockEdit:
        """For one transformer block, over a map of `size`."""
        if self is NO_EDIT:
            return NO_BLOCK_EDIT
        return BlockEdit(
            self.identity,
            self.observe,
            None if self.record is None else partial(self.record, block),
            self.pictures[block] if self.pictures else (),
            self.references[block] if self.references else (),
            self.shifts[block] if self.shifts else NO_SHIFTS,
            self.regroups,
            size,
        )

    def row(self, image: int) -> Edit:
        """For one image of a batch."""
        if not (self.pictures or self.references or self.shifts):
            return self
        shifts = [{n: tuple(s.row(image) for s in many) for n, many in of.items()} for of in self.shifts]
        return replace(
            self,
            pictures=tuple(tuple(p.row(image) for p in ps) for ps in self.pictures),
            references=tuple(tuple(r.row(image) for r in rs) for rs in self.references),
            shifts=tuple(shifts),
        )


NO_EDIT = Edit()


@dataclass(frozen=True)
class Residuals:
    """What control networks add to one pass, each b c h w.

    to_skips: to what the input blocks hand to the decoder, one for each, None for none (ControlNet).
    to_middle: to the middle block's output. to_inputs: to the output of input block i itself, so that the
    blocks below see it, too (T2I-Adapter).
    """

    to_skips: tuple[Tensor | None, ...] = ()
    to_middle: Tensor | None = None
    to_inputs: Mapping[int, Tensor] = field(default_factory=dict)

    def inside(self, index: int, h: Tensor) -> Tensor:
        return h + self.to_inputs[index] if index in self.to_inputs else h

    def middle(self, h: Tensor) -> Tensor:
        return h if self.to_middle is None else h + self.to_middle

    def skip(self, index: int, h: Tensor) -> Tensor:
        """What input block `index` hands to the decoder."""
        residual = self.to_skips[index] if self.to_skips else None
        return h if residual is None else h + residual

    def __add__(self, other: Residuals) -> Residuals:
        """Both: several networks control one pass."""
        pairs = zip_longest(self.to_skips, other.to_skips)
        inputs = {
            i: total(self.to_inputs.get(i), other.to_inputs.get(i))
            for i in sorted({*self.to_inputs, *other.to_inputs})
        }
        return Residuals(
            tuple(total(a, b) for a, b in pairs),
            total(self.to_middle, other.to_middle),
            {i: r for i, r in inputs.items() if r is not None},
        )


NO_RESIDUALS = Residuals()


def total(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    """a + b, where None adds nothing."""
    if a is None or b is None:
        return b if a is None else a
    return a + b


@dataclass(frozen=True)
class FreeU:
    """Stronger backbone, weaker low frequencies of the skips, in the two coarsest stages of the decoder (Si
    et al. 2023, arXiv:2309.11497). 1 everywhere changes nothing."""

    b1: float = 1.0
    b2: float = 1.0
    s1: float = 1.0
    s2: float = 1.0

    def apply(self, h: Tensor, skip: Tensor, stage: int) -> tuple[Tensor, Tensor]:
        """(h, skip) before they are concatenated, b c h w; stage 0 is the coarsest."""
        if stage > 1:
            return h, skip
        backbone, low = ((self.b1, self.s1), (self.b2, self.s2))[stage]
        if backbone != 1.0:
            half = h.shape[1] // 2
            h = torch.cat([h[:, :half] * backbone, h[:, half:]], dim=1)
        return h, scaled_low_frequencies(skip, low) if low != 1.0 else skip


def scaled_low_frequencies(x: Tensor, scale: float, radius: int = 1) -> Tensor:
    """x [b c h w] with the frequencies within `radius` of zero scaled."""
    exact = (
        x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
    )  # fft has no half precision on the CPU
    spectrum = torch.fft.fftshift(torch.fft.fftn(exact, dim=(-2, -1)), dim=(-2, -1))
    row, column = x.shape[-2] // 2, x.shape[-1] // 2
    mask = torch.ones(x.shape[-2:], dtype=exact.dtype, device=x.device)
    mask[row - radius : row + radius, column - radius : column + radius] = scale
    back = torch.fft.ifftn(torch.fft.ifftshift(spectrum * mask, dim=(-2, -1)), dim=(-2, -1))
    return back.real.to(x.dtype)
