"""What a drawing tells while it goes on: its steps, previews of it, and how long it will take; and what it
asks: whether to stop."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from PIL import Image


class CancelToken(Protocol):
    """Anything that can be asked whether to stop: threading.Event fits."""

    def is_set(self) -> bool: ...


@dataclass(frozen=True)
class Progress:
    """A step is done. `step` counts from 1 to `steps`. job: the name that the caller gave the run."""

    step: int
    steps: int
    sigma: float
    seconds: float  # since the run began
    left: float  # seconds until the last step, at the pace so far
    job: str = ""


@dataclass(frozen=True)
class Preview:
    """What the pictures look like after a step; never changes what comes out. by: "tiny", "vae" or
    "linear"."""

    step: int
    images: tuple[Image.Image, ...]
    steps: int
    sigma: float
    seconds: float
    by: str
    job: str = ""


Listener = Callable[[Progress | Preview], None]


class Pace:
    """How long things of one kind take, one after the other. The first is measured with all that comes before
    it (encoding, weights on their way), so it counts only while it is alone."""

    def __init__(self) -> None:
        self.begun = time.perf_counter()
        self._first: tuple[int, float] | None = None

    def times(self, done: int, of: int) -> tuple[float, float]:
        """(seconds since the beginning, seconds left) when `done` of `of` are done."""
        passed = time.perf_counter() - self.begun
        if self._first is None:
            self._first = done, passed
        first, until = self._first
        each = (passed - until) / (done - first) if done > first else passed / max(done, 1)
        return passed, max(0.0, each * (of - done))


class Course:
    """Several runs, one after the other, heard as one: their steps are counted through. planned: how many
    steps each may have, or what is in proportion to that; a run's own events tell its true number."""

    def __init__(self, on_event: Listener | None, planned: Sequence[int]) -> None:
        self.on_event = on_event
        self.planned = list(planned)
        self.true: dict[int, int] = {}
        self.pace = Pace()

    def listener(self, index: int) -> Listener | None:
        """Who hears of run `index`, its turn after all before it."""
        on_event = self.on_event
        if on_event is None:
            return None

        def hear(event: Progress | Preview) -> None:
            self.true[index] = event.steps
            known = sum(self.true.values())
            share = known / max(1, sum(self.planned[i] for i in self.true))
            steps = known + round(share * sum(n for i, n in enumerate(self.planned) if i not in self.true))
            step = event.step + sum(n for i, n in self.true.items() if i < index)
            seconds, left = self.pace.times(step, steps)
            if isinstance(event, Progress):
                on_event(replace(event, step=step, steps=steps, seconds=seconds, left=left))
            else:
                on_event(replace(event, step=step, steps=steps, seconds=seconds))

        return hear
