"""From a solver's steps to what a listener hears of a run."""

from __future__ import annotations

from dataclasses import dataclass

from minisd.events import Listener, Pace, Preview, Progress
from minisd.previews import Previewer
from minisd.samplers.step import Step


@dataclass(frozen=True)
class Listening:
    """Who hears of the steps, and how often with a preview of which kind."""

    on_event: Listener | None
    preview: tuple[str, Previewer] | None
    every: int
    pace: Pace
    steps: int
    job: str
    before: int = 0  # steps of an earlier pass

    def step(self, step: Step) -> None:
        if self.on_event is None:
            return
        done = self.before + step.index + 1
        seconds, left = self.pace.times(done, self.steps)
        self.on_event(Progress(done, self.steps, step.sigma, seconds, left, self.job))
        if self.preview is not None and self.every and done % self.every == 0 and done < self.steps:
            by, picture = self.preview
            pictures = picture(step.denoised)
            self.on_event(Preview(done, pictures, self.steps, step.sigma, seconds, by, self.job))
