"""The progress line of a drawing on a terminal."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from minisd.pipeline import Preview, Progress


class Bar:
    """A progress line on a terminal; nothing elsewhere."""

    def __init__(self, show: bool) -> None:
        self.show = show
        self.begun = time.perf_counter()
        self.width = 0

    def write(self, text: str) -> None:
        if self.show:
            sys.stderr.write("\r" + text.ljust(self.width))
            sys.stderr.flush()
            self.width = len(text)

    def __call__(self, event: Progress | Preview) -> None:
        step, steps = event.step, getattr(event, "steps", 0)
        if not steps:
            return
        done = round(24 * step / steps)
        rate = step / (time.perf_counter() - self.begun)
        left = (steps - step) / rate
        bar = "█" * done + "░" * (24 - done)
        self.write(f"{bar} {step}/{steps} steps, {rate:.1f} a second, {left:.0f} s left")

    def clear(self) -> None:
        if self.show and self.width:
            sys.stderr.write("\r" + " " * self.width + "\r")
            sys.stderr.flush()
