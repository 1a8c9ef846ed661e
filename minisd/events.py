"""What a drawing tells while it goes on: its steps, previews of it, and how long it will take."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from PIL import Image


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
