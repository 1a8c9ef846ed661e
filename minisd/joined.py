"""Images of one request drawn one after the other, put together as if they had been drawn at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch

from minisd.events import Listener, Pace, Preview, Progress
from minisd.pipeline import Drawing
from minisd.request import Request
from minisd.trail import Trail


def draw_each(
    requests: Sequence[Request],
    whole: Request,
    draw_one: Callable[[Request, Listener | None, Trail], Drawing],
    *,
    on_event: Listener | None = None,
    trail: Trail | None = None,
) -> Drawing:
    """Each of `requests` by `draw_one`, as one Drawing of `whole`. `on_event` hears steps counted
    through."""
    trail = Trail() if trail is None else trail
    if len(requests) == 1:
        drawing = draw_one(requests[0], on_event, trail)
        return replace(drawing, requests=tuple(requests), template=whole)
    drawings = []
    pace = Pace()
    for index, request in enumerate(requests):
        listener = None if on_event is None else counted(on_event, index, len(requests), pace)
        drawings.append(draw_one(request, listener, Trail(keep=trail.keep, listen=trail.listen)))
    trail.beside([d.trail for d in drawings])
    seconds: dict[str, float] = {}
    for drawing in drawings:
        for stage, spent in drawing.seconds.items():
            seconds[stage] = seconds.get(stage, 0.0) + spent
    return replace(
        drawings[0],
        images=tuple(image for d in drawings for image in d.images),
        latents=torch.cat([d.latents for d in drawings]),
        request=replace(requests[0], count=whole.count),
        seconds=seconds,
        trail=trail,
        requests=tuple(requests),
        template=whole,
    )


def counted(on_event: Listener, index: int, images: int, pace: Pace) -> Listener:
    """A listener to whom the steps of image `index` go on from those of the images before it."""

    def hear(event: Progress | Preview) -> None:
        step, steps = event.step + index * event.steps, images * event.steps
        seconds, left = pace.times(step, steps)
        if isinstance(event, Progress):
            on_event(replace(event, step=step, steps=steps, seconds=seconds, left=left))
        else:
            on_event(replace(event, step=step, steps=steps, seconds=seconds))

    return hear
