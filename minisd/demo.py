"""A contact sheet: the same prompts under several seeds, labelled, on one page.

    sheet = contact_sheet(minisd.load(), PROMPTS, seeds=(1, 2, 3))
    sheet.save("demo.png")

Prompts run from left to right, seeds from top to bottom. Every picture is the one that its prompt and seed
give alone; the page carries the requests, so that each can be made again.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from minisd.engine import Engine
from minisd.errors import RequestError
from minisd.images import save_png
from minisd.pipeline import CancelToken
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
MOST_PICTURES = 400

PAGE, INK, FAINT, BORDER = "#fbfaf7", "#2b2b2b", "#8d8a83", "#e4e1da"
GAP, MARGIN, LINE, LABEL = 14, 28, 17, 13  # pixels: between pictures, around, per line of text, text size


@dataclass(frozen=True)
class ContactSheet:
    """The page, the requests of its pictures (row by row) and the model that drew them."""

    page: Image.Image
    requests: tuple[Request, ...]
    model: str

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the page as PNG with the requests inside. Raises RequestError for another ending,
        ImageError."""
        if Path(path).suffix.lower() != ".png":
            raise RequestError(f"a sheet is written as PNG; {Path(path).name!r} should end in .png")
        record = {"model": self.model, "requests": [r.to_dict() for r in self.requests]}
        return save_png(self.page, path, {"minisd-sheet": json.dumps(record, ensure_ascii=False)})


def contact_sheet(
    engine: Engine,
    prompts: Sequence[str] = PROMPTS,
    seeds: Sequence[int] = SEEDS,
    *,
    base: Request | None = None,
    on_picture: Callable[[int, int], None] | None = None,
    cancel: CancelToken | None = None,
) -> ContactSheet:
    """Draw every prompt with every seed. base: what all pictures share beside prompt and seed. on_picture
    hears of each finished picture: its number from 1, and of how many. Raises RequestError, Cancelled."""
    if not prompts or not seeds:
        raise RequestError("a sheet needs at least one prompt and one seed")
    if len(prompts) * len(seeds) > MOST_PICTURES:
        raise RequestError(
            f"{len(prompts)} prompts with {len(seeds)} seeds are {len(prompts) * len(seeds)} pictures; "
            f"a sheet holds {MOST_PICTURES}"
        )
    shared = {} if base is None else base.to_dict()
    asked = [
        Request.from_dict(shared | {"prompt": prompt, "seed": seed}) for seed in seeds for prompt in prompts
    ]
    pictures: list[Image.Image] = []
    made: list[Request] = []
    for request in asked:
        result = engine.run(request, cancel=cancel)
        pictures.append(result.image)
        made.append(result.request)
        if on_picture is not None:
            on_picture(len(pictures), len(asked))
    page = lay_out(pictures, prompts, [f"seed {seed}" for seed in seeds])
    return ContactSheet(page, tuple(made), engine.model.name)


def lay_out(pictures: Sequence[Image.Image], columns: Sequence[str], rows: Sequence[str]) -> Image.Image:
    """Pictures (row by row) on a page, `columns` written above, `rows` at the left, all whole and legible."""
    width = max(p.width for p in pictures)
    height = max(p.height for p in pictures)
    font = ImageFont.load_default(LABEL)
    titles = [wrapped(text, font, width) for text in columns]
    left = MARGIN + max(int(font.getlength(text)) for text in rows) + GAP
    top = MARGIN + LINE * max(len(lines) for lines in titles) + GAP // 2
    page_size = (
        left + len(columns) * (width + GAP) - GAP + MARGIN,
        top + len(rows) * (height + GAP) - GAP + MARGIN,
    )
    page = Image.new("RGB", page_size, PAGE)
    pen = ImageDraw.Draw(page)
    for column, lines in enumerate(titles):
        x = left + column * (width + GAP) + width // 2
        for n, line in enumerate(reversed(lines)):  # the last line stands on the picture
            pen.text((x, top - GAP // 2 - n * LINE), line, fill=INK, font=font, anchor="md")
    for row, text in enumerate(rows):
        y = top + row * (height + GAP)
        pen.text((left - GAP, y + height // 2), text, fill=FAINT, font=font, anchor="rm")
        for column in range(len(columns)):
            x = left + column * (width + GAP)
            page.paste(pictures[row * len(columns) + column], (x, y))
            pen.rectangle((x - 1, y - 1, x + width, y + height), outline=BORDER)
    return page


def wrapped(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> list[str]:
    """Lines no wider than `width` pixels, broken between words; a single longer word is cut with an
    ellipsis."""
    lines = [""]
    for word in " ".join(text.split()).split(" ") if text.strip() else ["(empty prompt)"]:
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= width or not lines[-1]:
            lines[-1] = longer
        else:
            lines.append(word)
    return [cut(line, font, width) for line in lines[:6]]


def cut(line: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    if font.getlength(line) <= width:
        return line
    while line and font.getlength(line + "...") > width:
        line = line[:-1]
    return line + "..."
