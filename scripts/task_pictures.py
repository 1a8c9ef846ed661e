"""The pictures of docs/tasks.md, drawn by its own commands with the embedded model.

    python -m scripts.task_pictures [docs]

Halves, masks and enlarged pictures that the page speaks of are made here with Pillow.
"""

from __future__ import annotations

import os
import shlex
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from minisd.cli import main as minisd

SHOWN: dict[str, tuple[str, ...]] = {  # strip: its pictures, in order
    "img2img": ("apple", "green", "heart", "blue"),
    "inpaint": ("two", "right", "mushroom"),
    "outpaint": ("half", "whole"),
    "hires": ("frog", "enlarged", "large", "lost"),
    "seamless": ("tile", "four"),
    "regions": ("hearts", "apples"),
    "blend": ("blend-0", "blend-1", "blend-2", "blend-3"),
    "inversion": ("apple", "back"),
    "sweep": ("sheet",),
}
BETWEEN = 8  # pixels


def commands(page: str) -> list[list[str]]:
    """The arguments of every indented line that calls minisd."""
    lines = [line.strip() for line in page.splitlines() if line.startswith("    minisd ")]
    return [shlex.split(line)[1:] for line in lines]


def prepare(made: Path) -> None:
    """What the page says is made by hand, once the pictures it is made of are there."""
    if made.name == "pineapple.png":
        Image.open(made).crop((0, 0, 72, 128)).save("half.png")
    elif made.name == "two.png":
        mask = np.zeros((128, 256), dtype=np.uint8)
        mask[:, 128:] = 255
        Image.fromarray(mask).save("right.png")
    elif made.name == "frog.png":
        Image.open(made).resize((256, 256), Image.Resampling.LANCZOS).save("enlarged.png")
    elif made.name == "tile.png":
        Image.fromarray(np.tile(np.asarray(Image.open(made)), (2, 2, 1))).save("four.png")


def strip(pictures: list[Image.Image]) -> Image.Image:
    """Side by side, grey between them."""
    width = sum(p.width for p in pictures) + BETWEEN * (len(pictures) - 1)
    out = Image.new("RGB", (width, max(p.height for p in pictures)), (225, 225, 225))
    x = 0
    for picture in pictures:
        out.paste(picture.convert("RGB"), (x, 0))
        x += picture.width + BETWEEN
    return out


def main() -> None:
    docs = Path(sys.argv[1] if len(sys.argv) > 1 else "docs").resolve()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        for arguments in commands((docs / "tasks.md").read_text(encoding="utf-8")):
            print("minisd", shlex.join(arguments))
            if code := minisd([*arguments, "-q"]):
                sys.exit(code)
            prepare(Path(arguments[arguments.index("-o") + 1]))
        (docs / "tasks").mkdir(exist_ok=True)
        for name, shown in SHOWN.items():
            picture = strip([Image.open(f"{one}.png") for one in shown])
            picture.save(docs / "tasks" / f"{name}.jpg", quality=90)
        os.chdir(docs)


if __name__ == "__main__":
    main()
