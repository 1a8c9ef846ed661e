"""`minisd lora`: what adapter files are, made of two models, or made of each other."""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from minisd.commands import Commands


def add(commands: Commands) -> None:
    p = commands.add_parser(
        "lora",
        help="look into LoRA files, extract and merge them",
        description="Look into files of the LoRA family, extract one from two models, merge several. To make "
        "one part of a model: minisd convert --lora.",
    )
    kinds = p.add_subparsers(dest="kind", required=True, metavar="KIND")

    k = kinds.add_parser("info", help="kind, rank, what it changes and how strongly, what it fits, training")
    k.add_argument("file")
    k.add_argument(
        "-m", "--model", metavar="PATH", help="hold it against this model (default: SD1, SD2, SDXL)"
    )
    k.set_defaults(run=info)

    k = kinds.add_parser("extract", help="the difference of two models as a LoRA")
    k.add_argument("tuned", help="model that the LoRA is to lead to")
    k.add_argument("base", help="model that it is applied to")
    k.add_argument("-o", "--output", required=True, metavar="FILE", help="safetensors file; must not exist")
    k.add_argument("--rank", type=int, default=32, metavar="N", help="(default: 32)")
    k.add_argument("--conv-rank", type=int, metavar="N", help="of 3x3 convolutions (default: as --rank)")
    k.add_argument("--whole", action="store_true", help="also changes of norms and biases, as they are")
    k.add_argument("--dtype", default="float16", help="float32, float16, bfloat16 (default: float16)")
    k.set_defaults(run=extract)

    k = kinds.add_parser("merge", help="several in one, exactly or cut to a rank")
    k.add_argument(
        "files", nargs="+", metavar="FILE[:WEIGHT[:TE]]", help="also :te2=0.5 :blocks=IN04=0,MID=1 behind it"
    )
    k.add_argument("-o", "--output", required=True, metavar="FILE", help="safetensors file; must not exist")
    k.add_argument("-m", "--model", metavar="PATH", help="that they are for (default: SD1, SD2, SDXL by fit)")
    k.add_argument("--rank", type=int, metavar="N", help="at most this one (default: the sum, exact)")
    k.add_argument(
        "--dtype", default=None, help="float32, float16, bfloat16 (default: the widest of the files)"
    )
    k.set_defaults(run=merge)
    for k in kinds.choices.values():
        k.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help="write one JSON object")


def info(args: argparse.Namespace) -> dict[str, object]:
    from minisd.lora_info import lora_info, told

    found = lora_info(args.file, args.model)
    if not args.json:
        sys.stdout.write(told(found) + "\n")
    return found


def extract(args: argparse.Namespace) -> dict[str, object]:
    from minisd.lora_extract import extract as write

    def show(done: int, of: int) -> None:
        sys.stderr.write(f"\r{done}/{of} layers" + ("\n" if done == of else ""))

    watched = not args.json and sys.stderr.isatty()
    made = write(
        args.tuned,
        args.base,
        args.output,
        rank=args.rank,
        conv_rank=args.conv_rank,
        whole=args.whole,
        dtype=args.dtype,
        progress=show if watched else None,
    )
    if not args.json:
        sys.stdout.write(f"{made.path}\n")
        for part, count in made.modules.items():
            kept = f", {made.kept[part]:.2%} of the change kept" if part in made.kept else ""
            sys.stdout.write(f"{part:<15} {count} modules{kept}\n")
        for part in made.absent:
            sys.stdout.write(f"{part:<15} not in both models\n")
        if made.left_out:
            sys.stdout.write(
                f"left out: {made.left_out} changes of norms, biases and word tables, "
                f"{made.left_out_energy:.2%} of all\n"
            )
    return {**asdict(made), "path": str(made.path)}


def merge(args: argparse.Namespace) -> dict[str, object]:
    from minisd.lora_merge import join

    made = join(args.files, args.output, model=args.model, rank=args.rank, dtype=args.dtype)
    if not args.json:
        low, high = made.ranks
        ranks = f"rank {high}" if low == high else f"ranks {low} to {high}"
        sys.stdout.write(
            f"{made.path}  {made.modules} modules, {ranks}, {made.kept:.2%} of the change kept\n"
        )
    return {**asdict(made), "path": str(made.path)}
