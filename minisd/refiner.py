"""Handing a run over to another model on the way: SDXL's refiner (Podell et al. 2023, arXiv:2307.01952, 2.5).

Both models answer to one solver, each for its own steps; so the same model on both sides is one run, bit for
bit and with every solver, those of several steps included. Programs that run two solvers one after the other
forget the earlier steps at the hand-over: with solvers of one step that is the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TypeVar

from torch import Tensor

from minisd.config import ModelConfig
from minisd.errors import RequestError
from minisd.guidance import step_at
from minisd.request import Request
from minisd.samplers.schedule import SigmaTable

Answer = TypeVar("Answer", Tensor, tuple[Tensor, Tensor])


def check_pair(base: ModelConfig, refiner: ModelConfig) -> None:
    """Raises RequestError where the second model cannot go on with the latents of the first."""
    same = (base.unet.out_channels, base.vae.factor, base.vae.scale_factor, base.vae.latents_mean)
    other = (
        refiner.unet.out_channels,
        refiner.vae.factor,
        refiner.vae.scale_factor,
        refiner.vae.latents_mean,
    )
    if same != other:
        raise RequestError(
            f"the refiner ({refiner.family}) has latents of another kind than the model ({base.family}); "
            "give one of the same family",
            field="refiner_at",
        )
    if refiner.concat != base.concat:
        raise RequestError(
            f"the refiner has input channels for {refiner.concat}, the model for {base.concat}; give one "
            "with the same",
            field="refiner_at",
        )


def first_share(request: Request, table: SigmaTable, sigmas: Sequence[float]) -> int:
    """How many of a run's steps the first model makes, by the fork `refiner_rule`."""
    assert request.refiner_at is not None, "set by Engine.run"
    at, steps = request.refiner_at, len(sigmas) - 1
    if request.forks.refiner_rule == "times":
        trained = len(table.sigmas)
        cutoff = round(trained - at * trained)
        return sum(table.told(sigma) >= cutoff for sigma in sigmas[:-1])
    if request.forks.refiner_rule == "a1111":
        return min(steps, math.floor(at * steps) + 1)
    return round(at * steps)


def handed_over(
    first: Callable[[Tensor, float], Answer],
    second: Callable[[Tensor, float], Answer],
    sigmas: Sequence[float],
    share: int,
) -> Callable[[Tensor, float], Answer]:
    """denoise(x, sigma) of the first model for `share` steps of the run over sigmas, then of the second."""

    def call(x: Tensor, sigma: float) -> Answer:
        return first(x, sigma) if step_at(sigma, sigmas) < share else second(x, sigma)

    return call
