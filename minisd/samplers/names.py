"""The names of the solvers and schedules: ours, and those the community knows. Exact or refused, never
substituted.

Only names and facts, so that a Request can be checked without importing torch; `solver` fetches the function.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Sampler:
    """A solver and what must be known to use it."""

    name: str
    module: str  # of minisd.samplers; the function there is sample_<name>
    order: int
    calls: int  # network calls per step, counted without the step into sigma 0
    takes_eta: bool = False
    default_eta: float = 0.0
    schedule: str = "normal"  # when the request says "auto"
    aliases: tuple[str, ...] = ()  # A1111, diffusers


SAMPLERS: dict[str, Sampler] = {
    s.name: s
    for s in (
        Sampler("euler", "ode", 1, 1, aliases=("Euler", "k_euler", "EulerDiscreteScheduler")),
        Sampler(
            "euler_ancestral",
            "sde",
            1,
            1,
            takes_eta=True,
            default_eta=1.0,
            aliases=("Euler a", "euler_a", "k_euler_a", "EulerAncestralDiscreteScheduler"),
        ),
        Sampler("heun", "ode", 2, 2, aliases=("Heun", "k_heun", "HeunDiscreteScheduler")),
        Sampler("ddim", "sde", 1, 1, takes_eta=True, aliases=("DDIM", "DDIMScheduler")),
        Sampler(
            "dpmpp_2m",
            "ode",
            2,
            1,
            schedule="karras",
            aliases=("DPM++ 2M", "k_dpmpp_2m", "DPMSolverMultistepScheduler"),
        ),
    )
}
SCHEDULES = ("normal", "karras", "exponential")


def find_sampler(name: str) -> Sampler:
    """The sampler of this name or alias (case does not matter). Raises ValueError with the nearest names."""
    if not isinstance(name, str):
        raise ValueError(f"a sampler is named by text, got {type(name).__name__}")
    known = {alias.lower(): s for s in SAMPLERS.values() for alias in (s.name, *s.aliases)}
    found = known.get(name.strip().lower())
    if found is None:
        near = difflib.get_close_matches(name.lower(), known, n=1)
        hint = f"did you mean {known[near[0]].name!r}?" if near else f"known are {', '.join(SAMPLERS)}"
        raise ValueError(f"there is no sampler {name!r}; {hint}")
    return found


def solver(name: str) -> Callable[..., Tensor]:
    """The function of a sampler: `sample_x(denoise, x, sigmas, *, noise, on_step, ...)`."""
    sampler = find_sampler(name)
    module = importlib.import_module(f"minisd.samplers.{sampler.module}")
    return getattr(module, f"sample_{sampler.name}")
