"""`minisd inspect` and `minisd convert`: what model files are, and other forms of them."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from minisd.commands import Commands


def add(commands: Commands) -> None:
    p = commands.add_parser(
        "inspect",
        help="say what a model file is",
        description="Say what a model file is, by its keys and shapes alone: family, evidence, parts, sizes, "
        "leftovers. Reads headers only.",
    )
    p.add_argument("file", help="checkpoint, VAE, text encoder, adapter, or a diffusers folder")
    p.set_defaults(run=inspect)

    p = commands.add_parser(
        "convert",
        help="rewrite a model in another layout or precision",
        description="Rewrite a model: single file or diffusers folder, other precision, without EMA.",
        epilog="minisd convert model.ckpt model.safetensors --dtype float16",
    )
    p.add_argument("source", help="file or folder to read")
    p.add_argument("target", help="file (original) or folder (diffusers) to write; must not exist")
    p.add_argument(
        "--layout", choices=("original", "diffusers"), default="original", help="(default: original)"
    )
    p.add_argument("--dtype", default=None, help="float32, float16, bfloat16 (default: as in the source)")
    p.add_argument("--ema", action=argparse.BooleanOptionalAction, help="take the EMA copy as the weights")
    p.add_argument(
        "--keep-ema", action="store_true", help="keep the EMA copy beside the weights (original layout)"
    )
    p.set_defaults(run=convert)


def inspect(args: argparse.Namespace) -> dict[str, object]:
    from minisd.weights_loader.checkpoint import open_checkpoint

    report = open_checkpoint(args.file).report()
    if not args.json:
        sys.stdout.write(str(report) + "\n")
    return report.to_dict()


def convert(args: argparse.Namespace) -> dict[str, object]:
    from minisd.conversion import convert as write

    prune = not args.keep_ema
    target = write(
        args.source, args.target, layout=args.layout, dtype=args.dtype, prune_ema=prune, ema=args.ema
    )
    if not args.json:
        sys.stdout.write(f"{target}\n")
    return {"path": str(target), "layout": args.layout}
