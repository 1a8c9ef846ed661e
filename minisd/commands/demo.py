"""`minisd demo`: a contact sheet in one command."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from minisd.commands.flags import add_model_flags, engine_of
from minisd.commands.progress import Bar

if TYPE_CHECKING:
    from minisd.commands import Commands


def add(commands: Commands) -> None:
    p = commands.add_parser(
        "demo",
        help="draw a contact sheet, prompts x seeds",
        description="Draw a contact sheet: prompts from left to right, seeds from top to bottom. Without "
        "flags it shows what the embedded model can do.",
        epilog='minisd demo -o demo.png   or   minisd demo --prompt "a cat" --prompt "a dog" --seeds 1 2 3 4',
    )
    p.add_argument(
        "-o",
        "--output",
        default="demo.png",
        metavar="FILE",
        help="png, jpg, webp or avif; .csv and .json beside it (default: demo.png)",
    )
    p.add_argument("--prompt", action="append", metavar="TEXT", help="a column; once for each")
    p.add_argument("--seeds", type=int, nargs="+", metavar="SEED", help="the rows (default: 1 2 3)")
    p.add_argument("--steps", type=int, default=20, help="number of sampling steps (default: 20)")
    p.add_argument("--cfg-scale", type=float, default=5.0, metavar="CFG", help="guidance (default: 5)")
    add_model_flags(p)
    p.add_argument("-q", "--quiet", action="store_true", help="say nothing but errors")
    p.set_defaults(run=demo)


def demo(args: argparse.Namespace) -> dict[str, object]:
    from minisd.demo import PROMPTS, SEEDS, contact_sheet
    from minisd.metadata import check_target
    from minisd.request import Request

    check_target(args.output)
    base = Request(steps=args.steps, cfg_scale=args.cfg_scale)
    bar = Bar(sys.stderr.isatty() and not args.quiet and not args.json)
    bar.write("loading")
    with engine_of(args) as engine:
        try:
            sheet = contact_sheet(
                engine, args.prompt or PROMPTS, args.seeds or SEEDS, base=base, on_event=bar
            )
        finally:
            bar.clear()
    path, *_ = sheet.save(args.output)
    if not args.json and not args.quiet:
        sys.stdout.write(f"{path}  {len(sheet.cells)} pictures\n")
    return {"path": str(path), "pictures": [cell.request for cell in sheet.cells]}
