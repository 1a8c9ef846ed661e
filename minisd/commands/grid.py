"""`minisd grid`: every combination of up to three things, on labelled contact sheets."""

from __future__ import annotations

import argparse
import sys
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

from minisd.commands.flags import add_model_flags, add_request_flags, engine_of, refiner_of
from minisd.commands.progress import Bar
from minisd.errors import RequestError
from minisd.request import Request

if TYPE_CHECKING:
    from minisd.commands import Commands

AXIS = "NAME=VALUES"


def add(commands: Commands) -> None:
    p = commands.add_parser(
        "grid",
        help="vary up to three things and compare",
        description="Draw every combination of up to three axes, and labelled contact sheets of it, with "
        "a CSV and a JSON. An axis is a field of a request and its values (steps=10,20,30), with ranges as "
        "in A1111 (cfg_scale=1-9 (+2), strength=0.2-0.8 [4]); prompt_sr=apple,pear (the first is searched "
        "for in the prompts), lora:NAME=0,0.5,1 (its weight), size=512x512,768x512. Quotes keep a comma in "
        "a value.",
        epilog='minisd grid "a red apple" --x "cfg_scale=1-7 (+2)" --y "sampler=Euler a,DDIM" -o sheet.png',
    )
    p.add_argument("prompt", nargs="?", default="", help="what the pictures show")
    p.add_argument("--x", metavar=AXIS, required=True, help="from left to right")
    p.add_argument("--y", metavar=AXIS, help="from top to bottom")
    p.add_argument("--z", metavar=AXIS, help="a sheet for each value: NAME-1, NAME-2, ...")
    p.add_argument(
        "-o",
        "--output",
        default="sheet.png",
        metavar="FILE",
        help="png, jpg, webp or avif (default: sheet.png); NAME.csv, NAME.json and the folder NAME-cells, "
        "where each picture is by itself, with its receipt, lie beside it",
    )
    p.add_argument("--resume", action="store_true", help="keep the cells that are there already, whole")
    p.add_argument("--refiner", metavar="PATH", help="a model that takes over on the way (--refiner-at)")
    add_request_flags(p, "count")
    add_model_flags(p)
    p.add_argument("-q", "--quiet", action="store_true", help="say nothing but errors")
    p.set_defaults(run=grid)


def grid(args: argparse.Namespace) -> dict[str, object]:
    from minisd.axis import read_axis
    from minisd.grid import axes_of, draw_grid
    from minisd.metadata import check_target

    axes = axes_of([read_axis(text) for text in (args.x, args.y, args.z) if text is not None])
    names = {f.name for f in fields(Request)}
    base = Request.from_dict({k: v for k, v in vars(args).items() if k in names and v is not None})
    if not base.prompt and not any(axis.name == "prompt" for axis in axes):
        raise RequestError("say what the pictures show, or vary the prompt", field="prompt")
    target = Path(args.output)
    check_target(target)
    folder = target.with_name(f"{target.stem}-cells")
    folder.mkdir(exist_ok=True)
    bar = Bar(sys.stderr.isatty() and not args.quiet and not args.json)
    bar.write("loading")
    with engine_of(args, base) as engine, refiner_of(args) as refiner:
        try:
            made = draw_grid(
                engine, base, axes, folder=folder, resume=args.resume, refiner=refiner, on_event=bar
            )
        finally:
            bar.clear()
    written = made.save(target)
    drawn = sum(cell.seconds > 0 for cell in made.cells)
    if not args.json and not args.quiet:
        for path in written:
            sys.stdout.write(f"{path}\n")
        seed = made.cells[0].request["seed"]
        same = "" if drawn == len(made.cells) else f", {drawn} drawn now"
        told = "" if any(axis.name == "seed" for axis in axes) else f", seed {seed}"
        sys.stdout.write(f"{len(made.cells)} pictures in {folder}{same}{told}\n")
    return {"paths": [str(p) for p in written], "drawn": drawn, **made.record()}
