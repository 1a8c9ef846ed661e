"""Random numbers made while the network runs: a solver that asks for noise finds it ready.

A draw of 4 x 64 x 64 portable normals takes about a millisecond, a point of a Brownian path ten times that.
What a solver will ask for is known beforehand: `queries` runs it once on a single number. So the answers are
made by other threads, all of them as soon as may be: where they fit into memory, nothing is left to do for
the steps to come, and no thread wants Python's lock when a solver does. No bit depends on whether they were.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType

import torch
from torch import Tensor

from minisd.samplers.names import SAMPLERS, solver

Pair = tuple[float, float]  # sigma and sigma_next, as a solver asks
ROOM = 16 * 2**20  # bytes of answers kept ready


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

    answer(number, sigma, sigma_next) gives the number-th answer, counted from 0, and must be pure, for
    several threads at once too. size: bytes of an answer. makers: threads. Holds threads and ROOM bytes of
    answers (two at least) until closed: use it in a `with`.
    """

    def __init__(
        self,
        answer: Callable[[int, float, float], Tensor],
        expected: Sequence[Pair],
        *,
        size: int = 1,
        makers: int = 1,
    ) -> None:
        self.answer, self.expected = answer, expected
        self.ahead = max(2, ROOM // size)
        self.number = 0  # of answers given
        self.ready: dict[int, Future[Tensor]] = {}
        self.pool = ThreadPoolExecutor(makers, "minisd-noise")
        for number in range(min(self.ahead, len(expected))):
            self.begin(number)

    def begin(self, number: int) -> None:
        """Have another thread make an answer."""
        self.ready[number] = self.pool.submit(self.answer, number, *self.expected[number])

    def __call__(self, sigma: float, sigma_next: float) -> Tensor:
        number = self.number
        self.number += 1
        made = self.ready.pop(number, None)
        if made is None or self.expected[number] != (sigma, sigma_next):
            self.forget()
            return self.answer(number, sigma, sigma_next)
        if number + self.ahead < len(self.expected):
            self.begin(number + self.ahead)
        return made.result()

    def forget(self) -> None:
        """The run went another way than was expected: nobody will ask for what is being made."""
        for made in self.ready.values():
            made.cancel()
        self.ready.clear()

    def __enter__(self) -> Ahead:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.pool.shutdown(wait=True, cancel_futures=True)
