"""Stopping a run and going on later, exactly, with any solver.

A solver is a pure function of its levels, its noise and what the network answered. So a run is resumed by
running it again from the start with the answers it already had: `Answers` keeps them, and the solver's own
arithmetic, which costs next to nothing beside the network, finds its history again. Nothing of this knows
which solver it serves: multistep, stochastic and adaptive ones go on as if they had never stopped.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from torch import Tensor

Answer = TypeVar("Answer")  # a picture, or the guided and the unconditional one


@dataclass
class Answers(Generic[Answer]):
    """What `denoise` has answered so far, in order: (sigma, answer). Memory: one latent for each call."""

    given: list[tuple[float, Answer]] = field(default_factory=list)

    def kept(self, denoise: Callable[[Tensor, float], Answer]) -> Callable[[Tensor, float], Answer]:
        """denoise for one run from the start: gives the kept answers first, then asks and keeps.

        Raises ValueError where the run asks at another level than the kept one did: it is another run.
        """
        calls = 0

        def call(x: Tensor, sigma: float) -> Answer:
            nonlocal calls
            at = calls
            calls += 1
            if at == len(self.given):
                self.given.append((sigma, denoise(x, sigma)))
            level, answer = self.given[at]
            if level != sigma:
                raise ValueError(
                    f"call {at + 1} is at sigma {sigma:g}, but the kept answer was given at {level:g}; "
                    "resume with the sampler, levels and noise of the stopped run"
                )
            return answer

        return call
