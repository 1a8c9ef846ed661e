"""A contact sheet: the same prompts under several seeds, labelled, on one page.

    sheet = contact_sheet(minisd.load(), PROMPTS, seeds=(1, 2, 3))
    sheet.save("demo.png")

Prompts run from left to right, seeds from top to bottom: a grid (`grid.py`) of these two.
"""

from __future__ import annotations

from collections.abc import Sequence

from minisd.engine import Engine
from minisd.events import CancelToken, Listener
from minisd.grid import Grid, draw_grid
from minisd.request import Request

# for the embedded model: what its short training taught best, and what a prompt can vary
PROMPTS = (
    "a red apple",
    "a dog face",
    "a penguin",
    "a strawberry on a blue background",
    "a rocket on a black background",
    "a mushroom",
    "a grinning face",
    "a red heart on a yellow background",
)
SEEDS = (1, 2, 3)


def contact_sheet(
    engine: Engine,
    prompts: Sequence[str] = PROMPTS,
    seeds: Sequence[int] = SEEDS,
    *,
    base: Request | None = None,
    on_event: Listener | None = None,
    cancel: CancelToken | None = None,
) -> Grid:
    """Draw every prompt with every seed. base: what all pictures share beside prompt and seed. Raises
    RequestError, Cancelled."""
    axes = {"prompt": tuple(prompts), "seed": tuple(seeds)}
    return draw_grid(engine, base or Request(), axes, on_event=on_event, cancel=cancel)
