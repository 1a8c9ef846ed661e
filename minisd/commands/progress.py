"""The progress line of a drawing on a terminal."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from minisd.events import Preview, Progress


class Bar:
    """A progress line on a terminal; nothing elsewhere."""

    def __init__(self, show: bool) -> None:
        self.show = show
        self.width = 0

    def write(self, text: str) -> None:
        if self.show:
            sys.stderr.write("\r" + text.ljust(self.width))
            sys.stderr.flush()
            self.width = len(text)

    def __call__(self, event: Progress | Preview) -> None:
        from minisd.events import Progress

        if not isinstance(event, Progress):
            return
        step, steps, rate = event.step, event.steps, event.step / max(event.seconds, 1e-9)
        done = round(24 * step / steps)
        bar = "█" * done + "░" * (24 - done)
        self.write(f"{bar} {step}/{steps} steps, {rate:.1f} a second, {event.left:.0f} s left")

    def clear(self) -> None:
        if self.show and self.width:
            sys.stderr.write("\r" + " " * self.width + "\r")
            sys.stderr.flush()
