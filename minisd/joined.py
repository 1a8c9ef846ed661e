"""Images of one request drawn one after the other, put together as if they had been drawn at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch

from minisd.events import Course, Listener
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
    course = Course(on_event, [1] * len(requests))
    for index, request in enumerate(requests):
        drawings.append(
            draw_one(request, course.listener(index), Trail(keep=trail.keep, listen=trail.listen))
        )
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
