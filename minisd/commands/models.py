"""`minisd inspect`, `minisd convert` and `minisd merge`: what model files are, and others made of them."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from minisd.commands import Commands


DTYPE_HELP = (
    "float32, float16, bfloat16; float8_e4m3fn, float8_e5m2: of matrices, with float16 for the rest "
    "(default: as in the source)"
)


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
        description="Rewrite a model: single file or diffusers folder, other precision, without EMA copy and "
        "training leftovers, with another VAE or with adapters in its weights.",
        epilog="minisd convert model.ckpt model.safetensors --dtype float16 --vae vae.safetensors --lora "
        "film.safetensors:0.8",
    )
    p.add_argument("source", help="file or folder to read")
    p.add_argument("target", help="file (original) or folder (diffusers) to write; must not exist")
    p.add_argument(
        "--layout", choices=("original", "diffusers"), default="original", help="(default: original)"
    )
    p.add_argument("--dtype", default=None, help=DTYPE_HELP)
    p.add_argument("--ema", action=argparse.BooleanOptionalAction, help="take the EMA copy as the weights")
    p.add_argument(
        "--keep-ema", action="store_true", help="keep the EMA copy beside the weights (original layout)"
    )
    p.add_argument("--vae", metavar="PATH", help="write the VAE of this file")
    p.add_argument("--text-encoder", metavar="PATH", help="write the text encoder of this file")
    p.add_argument("--text-encoder-2", metavar="PATH", help="write the second text encoder of this file")
    p.add_argument(
        "--lora",
        action="append",
        default=[],
        metavar="FILE[:WEIGHT[:TE]]",
        help="make an adapter part of the weights; once for each; also :te2=, :blocks=",
    )
    p.set_defaults(run=convert)

    p = commands.add_parser(
        "merge",
        help="make one model out of several",
        description="Make one model out of several of one family, tensor by tensor: weighted (1-m)A + mB; "
        "difference A + m(B-C); ties and dare: A + m times what B, C, ... changed, conflicts solved by sign "
        "or most of it dropped at random.",
        epilog="minisd merge a.safetensors b.safetensors -o c.safetensors --weight 0.3 --blocks IN04=0,M00=1",
    )
    p.add_argument("models", nargs="+", metavar="MODEL", help="A B, A B C, or A and what was made from it")
    p.add_argument("-o", "--output", required=True, metavar="PATH", help="to write; must not exist")
    p.add_argument(
        "--method", choices=("weighted", "difference", "ties", "dare", "dare_ties"), default="weighted"
    )
    p.add_argument("--weight", type=float, metavar="M", help="m (default: 0.5 of weighted, else 1)")
    p.add_argument(
        "--blocks",
        default="",
        metavar="NUMBERS",
        help="m of each block: 25 or 26 numbers (SDXL 19 or 20), or names: IN04=0,OUT03=1,BASE=0.5",
    )
    p.add_argument(
        "--shares", type=float, nargs="+", metavar="N", help="ties, dare: one for each of B, C, ..."
    )
    p.add_argument("--density", type=float, default=0.5, metavar="N", help="ties, dare: part that is kept")
    p.add_argument("--seed", type=int, default=0, metavar="N", help="dare: of what is dropped")
    p.add_argument("--text-from", default="merge", metavar="LETTER", help="merge (default), A, B, ...")
    p.add_argument("--vae-from", metavar="LETTER", help="merge, A (default), B, ...")
    p.add_argument("--layout", choices=("original", "diffusers"), default="original")
    p.add_argument("--dtype", default=None, help=DTYPE_HELP)
    p.set_defaults(run=merge)


def inspect(args: argparse.Namespace) -> dict[str, object]:
    from minisd.weights_loader.checkpoint import open_checkpoint

    report = open_checkpoint(args.file).report()
    if not args.json:
        sys.stdout.write(str(report) + "\n")
    return report.to_dict()


def convert(args: argparse.Namespace) -> dict[str, object]:
    from minisd.conversion import convert as write

    target = write(
        args.source,
        args.target,
        layout=args.layout,
        dtype=args.dtype,
        prune_ema=not args.keep_ema,
        ema=args.ema,
        vae=args.vae,
        text_encoder=args.text_encoder,
        text_encoder_2=args.text_encoder_2,
        loras=args.lora,
    )
    if not args.json:
        sys.stdout.write(f"{target}\n")
    return {"path": str(target), "layout": args.layout}


def place(letter: str) -> int | str:
    """The model that a letter means: A is 0."""
    single = len(letter) == 1 and letter.isascii() and letter.isalpha()
    return ord(letter.upper()) - ord("A") if single else letter


def merge(args: argparse.Namespace) -> dict[str, object]:
    from minisd.merging import Recipe
    from minisd.merging import merge as write

    recipe = Recipe(
        method=args.method,
        weight=args.weight,
        blocks=args.blocks,
        shares=None if args.shares is None else tuple(args.shares),
        density=args.density,
        seed=args.seed,
        text=place(args.text_from),  # type: ignore[arg-type]  # checked by Recipe
        vae=None if args.vae_from is None else place(args.vae_from),  # type: ignore[arg-type]
    )
    target = write(args.models, args.output, recipe, layout=args.layout, dtype=args.dtype)
    if not args.json:
        sys.stdout.write(f"{target}\n")
    return {"path": str(target), "method": args.method, "models": args.models}
