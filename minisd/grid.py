"""Grids: up to three things of a request varied, every combination drawn, on labelled contact sheets.

    base = Request(prompt="a red apple", seed=7)
    grid = draw_grid(engine, base, {"cfg_scale": (1, 3, 5), "sampler": ("euler", "ddim")})
    grid.save("sheet.png")  # sheet.png, sheet.csv, sheet.json

The first axis runs from left to right, the second from top to bottom, the third has a page for each value.
Every cell is, bit for bit, the picture that its request gives alone (`axis.py` says what can be varied).
"""

from __future__ import annotations

import csv
import io
import itertools
import os
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from hashlib import sha256
from pathlib import Path
from typing import cast

from PIL import Image

from minisd import __version__
from minisd.atomic import write_bytes
from minisd.axis import MOST_CELLS, Axis, axis
from minisd.engine import Engine
from minisd.errors import RequestError
from minisd.events import CancelToken, Course, Listener
from minisd.kept import Keeper, Kept
from minisd.metadata import check_target, encoded, format_of, room_for_record
from minisd.receipt import json_text
from minisd.request import Request
from minisd.sheet import lay_out, shown_size
from minisd.sidecar import INSIDE

MOST_AXES = 3


@dataclass(frozen=True)
class Cell:
    """One picture of a grid. place: which value of each axis; request: as drawn, plain data; pixels: digest;
    seconds: spent now, 0 for one that was there or is the same as another."""

    place: tuple[int, ...]
    key: str
    request: dict[str, object]
    pixels: str
    path: Path | None
    seconds: float


@dataclass(frozen=True)
class Grid:
    """The cells of a grid (first axis fastest), its pages, and the model that drew it. scale: by which
    pictures are smaller on the pages than they are."""

    axes: tuple[Axis, ...]
    cells: tuple[Cell, ...]
    pages: tuple[Image.Image, ...]
    model: str
    scale: float

    def record(self) -> dict[str, object]:
        """All of it as plain data: what the JSON beside a sheet says, and the sheet itself."""
        axes = [{"name": a.name, "labels": list(a.labels)} for a in self.axes]
        cells = [
            {
                "place": list(c.place),
                "key": c.key,
                "pixels": c.pixels,
                "file": None if c.path is None else f"{c.path.parent.name}/{c.path.name}",
                "seconds": round(c.seconds, 3),
                "request": c.request,
            }
            for c in self.cells
        ]
        return {
            "minisd": __version__,
            "sheet": {"axes": axes, "scale": self.scale, "cells": len(cells)},
            "model": self.model,
            "cells": cells,
        }

    def table(self) -> str:
        """CSV: a row for each cell."""
        out = io.StringIO()
        rows = csv.writer(out, lineterminator="\n")
        rows.writerow([*(a.name for a in self.axes), "seed", "seconds", "pixels", "file"])
        for c in self.cells:
            said = [shown(a, i) for a, i in zip(self.axes, c.place, strict=True)]
            file = "" if c.path is None else f"{c.path.parent.name}/{c.path.name}"
            rows.writerow([*said, c.request["seed"], f"{c.seconds:.3f}", c.pixels, file])
        return out.getvalue()

    def save(self, path: str | os.PathLike[str]) -> list[Path]:
        """Write the pages (several as name-1.png, name-2.png, ...), name.csv and name.json, each whole or not
        at all. The pages hold the same record; of one too large for that, what it is and its digest. Raises
        RequestError for another format, ImageError."""
        target = Path(path)
        check_target(target)
        record, format = self.record(), format_of(target)
        text = json_text(record)
        beside = write_bytes(text.encode(), target.with_suffix(".json"))
        if len(text.encode()) > min(room_for_record(format, ""), INSIDE):
            short = {k: v for k, v in record.items() if k != "cells"}
            text = json_text(short | {"beside": beside.name, "sha256": sha256(text.encode()).hexdigest()})
        written = []
        for index, page in enumerate(self.pages):
            name = target if len(self.pages) == 1 else target.with_stem(f"{target.stem}-{index + 1}")
            written.append(write_bytes(encoded(page, format, {"minisd": text}), name))
        table = write_bytes(self.table().encode("utf-8", "backslashreplace"), target.with_suffix(".csv"))
        return [*written, table, beside]


def shown(axis: Axis, index: int) -> str:
    """A value for a table, without the name that the label begins with."""
    return axis.labels[index].removeprefix(f"{axis.name} ")


def axes_of(axes: Mapping[str, Sequence[object]] | Sequence[Axis]) -> tuple[Axis, ...]:
    """Checked: one to three, none twice, no more than MOST_CELLS cells."""
    made = tuple(axis(n, v) for n, v in axes.items()) if isinstance(axes, Mapping) else tuple(axes)
    if not 1 <= len(made) <= MOST_AXES:
        raise RequestError(f"a grid has 1 to {MOST_AXES} axes, got {len(made)}; name what is to be varied")
    seen = [name for a in made for name in (("width", "height") if a.name == "size" else (a.name,))]
    for index, name in enumerate(seen):
        if name in seen[:index] and name != "prompt_sr":
            raise RequestError(f"two axes vary {name}; leave one out", field=name)
    count = 1
    for a in made:
        count *= len(a)
    if count > MOST_CELLS:
        sizes = " x ".join(str(len(a)) for a in made)
        raise RequestError(f"{sizes} are {count:,} pictures; a grid holds {MOST_CELLS}. Vary less")
    return made


def cell_request(base: Request, axes: Sequence[Axis], place: Sequence[int]) -> Request:
    """The request of one cell. Raises RequestError naming the values that do not go together."""
    values = {f.name: getattr(base, f.name) for f in fields(Request)}
    # whole fields first, so that what is searched for, or weighted, is in the cell's own
    for a, index in sorted(zip(axes, place, strict=True), key=lambda pair: pair[0].name not in values):
        a.put(values, index)
    try:
        return Request.from_dict(values)
    except RequestError as error:
        raise at_cell(error, axes, place) from error


def at_cell(error: RequestError, axes: Sequence[Axis], place: Sequence[int]) -> RequestError:
    where = ", ".join(f"{a.name} {shown(a, i)[:60]}" for a, i in zip(axes, place, strict=True))
    return RequestError(f"at {where}: {error}", field=error.field)


def draw_grid(
    engine: Engine,
    base: Request,
    axes: Mapping[str, Sequence[object]] | Sequence[Axis],
    *,
    folder: str | os.PathLike[str] | None = None,
    resume: bool = False,
    refiner: Engine | None = None,
    on_event: Listener | None = None,
    cancel: CancelToken | None = None,
) -> Grid:
    """Draw `base` with every combination of the axes' values; all with one seed, drawn if none is given.

    axes: {name: values}, or what `axis` and `read_axis` make. folder: where each cell is kept, as a picture
    with a receipt; resume: cells that are there, whole, are not drawn again. on_event hears the steps of all
    cells as of one run. What cannot be drawn is refused before anything is. Raises what `Engine.run` raises.
    """
    made = axes_of(axes)
    if base.count != 1:
        raise RequestError("a cell of a grid is one picture; vary the seed, not the count", field="count")
    places = [p[::-1] for p in itertools.product(*(range(len(a)) for a in reversed(made)))]
    keeper = Keeper(engine, folder, refiner=refiner)
    asked: list[Request] = []
    keys: list[str] = []
    for place in places:
        request = cell_request(base, made, place)
        try:
            keys.append(keeper.key(request))
        except RequestError as error:
            raise at_cell(error, made, place) from error
        asked.append(request)
    found = there(keeper, keys) if resume else {}
    # a seed that was drawn for cells that are there is that of the others too
    newest = max(
        (k for r, key in zip(asked, keys, strict=True) if r.seed is None and (k := found.get(key))),
        key=lambda k: k.paths[0].stat().st_mtime_ns,
        default=None,
    )
    seed = secrets.randbits(32) if newest is None else cast(int, newest.requests[0]["seed"])
    todo = dict[str, Request]()
    for request, key in zip(asked, keys, strict=True):
        one = replace(request, seed=seed) if request.seed is None else request
        if key not in found or found[key].requests[0]["seed"] != one.seed:
            todo[key] = one
    course = Course(on_event, [request.steps for request in todo.values()])
    sizes = [size_of(request, engine) for request in asked]
    columns, rows = len(made[0]), len(made[1]) if len(made) > 1 else 1
    largest = (max(w for w, _ in sizes), max(h for _, h in sizes))
    scale = shown_size(largest, columns, rows)[0] / largest[0]
    small = {key: shrunk(kept.images[0], scale) for key, kept in found.items() if key not in todo}
    drawn = {key: replace(kept, images=()) for key, kept in found.items() if key not in todo}
    for index, (key, request) in enumerate(todo.items()):
        kept = keeper.draw(request, key, on_event=course.listener(index), cancel=cancel)
        small[key] = shrunk(kept.images[0], scale)
        drawn[key] = replace(kept, images=())
    return Grid(made, cells_of(places, keys, drawn), pages_of(made, keys, small), engine.model.name, scale)


def there(keeper: Keeper, keys: Sequence[str]) -> dict[str, Kept]:
    return {key: kept for key in dict.fromkeys(keys) if (kept := keeper.find(key, 1)) is not None}


def size_of(request: Request, engine: Engine) -> tuple[int, int]:
    """Width and height of the picture that comes out."""
    whole = request.for_model(engine.model.config, seed=0)
    assert whole.width is not None and whole.height is not None
    return round(whole.width * whole.hires_scale), round(whole.height * whole.hires_scale)


def shrunk(image: Image.Image, scale: float) -> Image.Image:
    if scale == 1.0:
        return image
    size = (max(1, int(image.width * scale)), max(1, int(image.height * scale)))
    return image.resize(size, Image.Resampling.LANCZOS)


def cells_of(
    places: Sequence[tuple[int, ...]], keys: Sequence[str], drawn: Mapping[str, Kept]
) -> tuple[Cell, ...]:
    cells, counted = [], set[str]()
    for place, key in zip(places, keys, strict=True):
        kept = drawn[key]
        path = kept.paths[0] if kept.paths else None
        spent = 0.0 if key in counted else kept.seconds
        counted.add(key)
        cells.append(Cell(place, key, kept.requests[0], kept.pixels[0], path, spent))
    return tuple(cells)


def pages_of(
    axes: Sequence[Axis], keys: Sequence[str], small: Mapping[str, Image.Image]
) -> tuple[Image.Image, ...]:
    """One page for each value of the third axis."""
    columns, rows = axes[0].labels, axes[1].labels if len(axes) > 1 else ("",)
    titles = axes[2].labels if len(axes) > 2 else ("",)
    each = len(columns) * len(rows)
    return tuple(
        lay_out([small[k] for k in keys[n * each : (n + 1) * each]], columns, rows, title)
        for n, title in enumerate(titles)
    )
