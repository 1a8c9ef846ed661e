"""Trail: what a run passes through, by digest. The text as the network sees it, the first latents, the
latents after every step, and the last.

Two runs that agree here agree to the bit; where they do not, the first mark that differs names the step. A
digest is SHA-256 over dtype, shape and little-endian bytes of one image's latents, so it does not depend on
the batch an image stands in. Latents are kept as they are and hashed together when the run is over, or when
MAX_WAITING bytes wait: no solver writes into them, and between two calls of the network nothing is warm. 64 x
64 latents cost about 0.04 ms.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import TypeVar

import torch
from torch import Tensor

from minisd.samplers.step import Step

MAX_WAITING = 64 * 2**20  # bytes of latents that wait to be hashed, and make no host wait for a device
MAX_ANSWERS = 256 * 2**20  # bytes of answers that are kept; a run of 20 steps at 512 x 512 has 1.3 million
Said = TypeVar("Said", Tensor, tuple[Tensor, Tensor])


@dataclass(frozen=True)
class Answer:
    """What the network, guided, gave when it was asked once. step: in which, counted from 1 over all passes;
    parts: b c h w, one or (for CFG++ solvers) two."""

    step: int
    sigma: float
    parts: tuple[Tensor, ...]


@dataclass(frozen=True)
class Mark:
    """One place of a run. digests: one for each image, or a single one that all images share."""

    name: str
    sigma: float | None
    digests: tuple[str, ...]

    def digest(self, image: int) -> str:
        return self.digests[image if len(self.digests) > 1 else 0]


def digest(tensor: Tensor) -> str:
    """SHA-256 of a tensor's dtype, shape and values, hex."""
    data = tensor.detach().cpu().contiguous()
    hashed = hashlib.sha256(f"{str(data.dtype).removeprefix('torch.')} {list(data.shape)} ".encode())
    # as bytes: numpy knows no bfloat16. Every machine torch runs on is little-endian
    hashed.update(data.view(-1).view(torch.uint8).numpy().data)
    return hashed.hexdigest()


def tensors_in(value: object) -> Iterator[Tensor | str]:
    """The tensors in nested dataclasses, tuples and mappings, and the other values between them as text, in
    the order they are declared: what a digest of all of it must see."""
    if isinstance(value, Tensor):
        yield value
    elif is_dataclass(value):
        for field in fields(value):
            yield from tensors_in(getattr(value, field.name))
    elif isinstance(value, tuple | list):
        for item in value:
            yield from tensors_in(item)
    elif isinstance(value, dict):
        for key in sorted(value, key=str):
            yield from tensors_in(value[key])
    elif isinstance(value, int | float | str | None):
        yield repr(value)


def digest_all(value: object) -> str:
    """One digest of everything in a nested value."""
    parts = [p if isinstance(p, str) else digest(p) for p in tensors_in(value)]
    return hashlib.sha256("\n".join(parts).encode("utf-8", "backslashreplace")).hexdigest()


class Trail:
    """The marks of one run; with `keep` also the latents at each of them, with `listen` every answer of the
    network, up to MAX_ANSWERS bytes.

    The state of one drawing, made anew for each. `kept` holds {mark name: latents b c h w}; `answers` what
    `denoise` gave, call by call: enough to take any step again alone (`spot.py`).
    """

    def __init__(self, *, keep: bool = False, listen: bool = False) -> None:
        self.keep, self.listen = keep, listen
        self.kept: dict[str, Tensor] = {}
        self.answers: list[Answer] = []
        self._left = MAX_ANSWERS
        self.steps = 0
        self._marks: list[Mark | tuple[str, float | None, Tensor]] = []
        self._waiting = 0

    def clear(self) -> None:
        """As it was made, for a drawing that begins anew."""
        self.kept, self.answers, self._marks = {}, [], []
        self._left, self.steps, self._waiting = MAX_ANSWERS, 0, 0

    def text(self, prompts: object) -> None:
        """What the text encoders gave."""
        self._marks.append(Mark("text", None, (digest_all(prompts),)))

    def start(self, x: Tensor, sigma: float) -> None:
        """The latents that a solver begins with. A run with several passes has several starts."""
        begun = sum(1 for m in self._marks if (m.name if isinstance(m, Mark) else m[0]).startswith("start"))
        self._latents("start" if not begun else f"start {begun + 1}", sigma, x)

    def step(self, step: Step) -> None:
        """The latents after a step; steps of all passes count on."""
        self.steps += 1
        self._latents(f"step {self.steps}", step.sigma_next, step.x)

    def end(self, latents: Tensor) -> None:
        """The latents that are decoded."""
        self._latents("latents", None, latents)

    def through(self, denoise: Callable[[Tensor, float], Said]) -> Callable[[Tensor, float], Said]:
        """`denoise` as the solver is to see it: itself, or with its answers kept."""
        if not self.listen:
            return denoise

        def listening(x: Tensor, sigma: float) -> Said:
            answer = denoise(x, sigma)
            parts = (answer,) if isinstance(answer, Tensor) else tuple(answer)
            self._left -= sum(p.numel() * p.element_size() for p in parts)
            if self._left >= 0:
                kept = tuple(p.detach().cpu().clone() for p in parts)
                self.answers.append(Answer(self.steps + 1, float(sigma), kept))
            return answer

        return listening

    def _latents(self, name: str, sigma: float | None, x: Tensor) -> None:
        if self.keep:
            self.kept[name] = x.detach().cpu().clone()
        self._marks.append((name, sigma, x))
        self._waiting += x.numel() * x.element_size()
        if self._waiting > MAX_WAITING:
            self.settle()

    def beside(self, others: Sequence[Trail]) -> None:
        """The marks of runs that drew one image each, side by side. A mark that only some runs have (an
        adaptive solver's further steps) is left out."""
        first, *rest = [{m.name: m for m in trail.settle()} for trail in others]
        for name, mark in first.items():
            if all(name in marks for marks in rest):
                digests = [marks[name].digests for marks in (first, *rest)]
                same = all(d == digests[0] for d in digests) and name == "text"
                self._marks.append(
                    Mark(name, mark.sigma, digests[0] if same else tuple(d for row in digests for d in row))
                )
        self.steps += min(trail.steps for trail in others)
        if self.keep:
            names = [name for name in others[0].kept if all(name in trail.kept for trail in others)]
            self.kept |= {name: torch.cat([trail.kept[name] for trail in others]) for name in names}
        for calls in zip(*(trail.answers for trail in others), strict=False):
            if len({(call.step, call.sigma) for call in calls}) > 1:
                break  # an adaptive solver went other ways
            parts = zip(*(call.parts for call in calls), strict=True)
            self.answers.append(
                Answer(calls[0].step, calls[0].sigma, tuple(torch.cat(part) for part in parts))
            )

    def settle(self) -> tuple[Mark, ...]:
        """All marks, with what waited hashed."""
        marks = [
            m if isinstance(m, Mark) else Mark(m[0], m[1], tuple(digest(row) for row in m[2].detach().cpu()))
            for m in self._marks
        ]
        self._marks = list[Mark | tuple[str, float | None, Tensor]](marks)
        self._waiting = 0
        return tuple(marks)
