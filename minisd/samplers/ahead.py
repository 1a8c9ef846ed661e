"""Random numbers made while the network runs: a solver that asks for noise finds it ready.

A draw of 4 x 64 x 64 portable normals takes about a millisecond, a point of a Brownian tree up to twenty
times that. What a solver will ask for is known beforehand: `queries` runs it once on a single number. So the
next answers are made by other threads while the network computes; no bit depends on whether they were.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import TypeVar

import torch
from torch import Tensor

from minisd.samplers.names import SAMPLERS, solver

Said = TypeVar("Said")
Pair = tuple[float, float]  # sigma and sigma_next, as a solver asks
AHEAD = 4  # answers kept ready: bounds the memory


def queries(name: str, sigmas: Tensor, options: dict[str, object]) -> list[Pair]:
    """What this solver asks of its noise over these levels, in order. Where its steps depend on what the
    network answers (dpm_adaptive), the questions of another run: nobody will ask most of them."""
    sampler = SAMPLERS[name]
    if sampler.noise == "none" and not options.get("s_churn"):
        return []
    asked: list[Pair] = []
    zero = torch.zeros(1, 1, 1, 1)

    def noise(sigma: float, sigma_next: float) -> Tensor:
        asked.append((sigma, sigma_next))
        return zero

    def denoise(x: Tensor, sigma: float) -> object:
        return (zero, zero) if sampler.both else zero

    solver(name)(denoise, zero, sigmas, noise=noise, **options)
    return asked


class Ahead:
    """A Noise whose answers are made ahead, as long as it is asked what was expected.

    answer(number, sigma, sigma_next) gives the number-th answer, counted from 0, and must be pure. Holds
    threads and AHEAD tensors until closed: use it in a `with`.
    """

    def __init__(self, answer: Callable[[int, float, float], Tensor], expected: Sequence[Pair]) -> None:
        self.answer, self.expected = answer, expected
        self.number = 0  # of answers given
        self.begun = 0  # of answers whose making began
        self.ready: dict[int, Future[Tensor]] = {}
        self.pool = ThreadPoolExecutor(min(AHEAD, os.cpu_count() or 1), "minisd-noise")
        self.prepare()

    def prepare(self) -> None:
        """Have other threads make the next answers."""
        self.begun = max(self.begun, self.number)
        while self.begun < min(self.number + AHEAD, len(self.expected)):
            answer = self.pool.submit(self.answer, self.begun, *self.expected[self.begun])
            self.ready[self.begun] = answer
            self.begun += 1

    def beside(self, denoise: Callable[[Tensor, float], Said]) -> Callable[[Tensor, float], Said]:
        """`denoise`, with the next answers made while it computes: between its calls, threads that want
        Python's lock would keep the solver from it."""

        def beside(x: Tensor, sigma: float) -> Said:
            self.prepare()
            return denoise(x, sigma)

        return beside

    def __call__(self, sigma: float, sigma_next: float) -> Tensor:
        number = self.number
        self.number += 1
        made = self.ready.pop(number, None)
        if made is None or self.expected[number] != (sigma, sigma_next):
            return self.answer(number, sigma, sigma_next)
        return made.result()

    def __enter__(self) -> Ahead:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.pool.shutdown(wait=True, cancel_futures=True)
