"""`minisd quantize`: a model with its weights in few bits, and what that costs."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from minisd.errors import PlanError
from minisd.wishes import QUANTS

if TYPE_CHECKING:
    from minisd.commands import Commands

PROMPTS = ("a red apple", "a smiling face", "a blue car", "a cat")


def add(commands: Commands) -> None:
    p = commands.add_parser(
        "quantize",
        help="write a model with its weights in few bits, or say what that costs",
        description="Write a model with its weights in few bits, a file that loads again. Layers that cannot "
        "bear it stay as they are; --report names them, and measures errors of layers and of pictures.",
        epilog="minisd quantize model.safetensors -o small.safetensors --unet int8 --text int8 --vae int8",
    )
    p.add_argument("file", nargs="?", help="checkpoint file or diffusers folder (default: embedded)")
    p.add_argument("-o", "--output", metavar="FILE", help="safetensors file to write; must not exist")
    for part in ("unet", "text", "vae"):
        p.add_argument(f"--{part}", default="auto", choices=QUANTS, help="(default: as they are)")
    p.add_argument(
        "--dtype", help="of what stays wide: float32, float16, bfloat16 (default: as in the source)"
    )
    p.add_argument("--ema", action=argparse.BooleanOptionalAction, help="take the EMA copy as the weights")
    p.add_argument("--report", action="store_true", help="error of each layer, and of pictures")
    group = p.add_argument_group("pictures of the report")
    group.add_argument("--prompt", action="append", help="once for each (default: four)")
    group.add_argument("--seeds", type=int, default=2, metavar="N", help="pictures of each (default: 2)")
    group.add_argument("--steps", type=int, default=20, metavar="N", help="(default: 20)")
    group.add_argument("--width", type=int, metavar="N")
    group.add_argument("--height", type=int, metavar="N")
    group.add_argument("--device", default="auto", help="cpu, cuda, ... (default: what torch finds)")
    p.set_defaults(run=quantize)


def quantize(args: argparse.Namespace) -> dict[str, object]:
    schemes = {part: getattr(args, part) for part in ("unet", "text", "vae")}
    if not args.report and args.output is None:
        raise PlanError("nothing to do: name a file to write with -o, or ask for --report")
    answer: dict[str, object] = {}
    if args.output is not None:
        from minisd.engine import embedded_model
        from minisd.quantisation import quantize as write

        source = args.file or embedded_model()
        answer["path"] = str(write(source, args.output, dtype=args.dtype, ema=args.ema, **schemes))
        if not args.json:
            sys.stdout.write(f"{answer['path']}\n")
    if args.report:
        from minisd.quantise_report import quant_report
        from minisd.request import Request

        given = {"width": args.width, "height": args.height}
        size = {key: value for key, value in given.items() if value is not None}
        fields = {"seed": 1, "count": args.seeds, "steps": args.steps, **size}
        requests = [Request.from_dict({"prompt": p, **fields}) for p in args.prompt or PROMPTS]
        report = quant_report(args.file, requests, schemes, device=args.device)
        if not args.json:
            sys.stdout.write(f"{report}\n")
        answer |= report.to_dict()
    return answer
