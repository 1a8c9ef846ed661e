"""`minisd upscale` and `minisd preprocess`: pictures made larger, and hints for control networks."""

from __future__ import annotations

import argparse
import os
import sys
from typing import TYPE_CHECKING

from minisd.control import PREPROCESSORS
from minisd.errors import ImageError

if TYPE_CHECKING:
    from minisd.commands import Commands


def add(commands: Commands) -> None:
    p = commands.add_parser(
        "upscale",
        help="make a picture larger",
        description="Make a picture larger with an upscaler: ESRGAN, BSRGAN, Real-ESRGAN (RRDBNet, Compact); "
        "others with the extra minisd[upscalers]. "
        "To draw details with a model as well, see `minisd img2img --width --diffusion-tile` and "
        "`minisd txt2img --hires-scale`.",
        epilog="minisd upscale small.png large.png --upscaler RealESRGAN_x4plus.pth",
    )
    p.add_argument("picture", help="PNG, JPEG or WebP")
    p.add_argument("target", help="PNG to write")
    p.add_argument("-u", "--upscaler", required=True, metavar="PATH", help="file of the network")
    p.add_argument("--tile", type=int, default=256, metavar="PIXELS", help="enlarged at once (default: 256)")
    p.add_argument("--whole", action="store_true", help="all at once, without tiles")
    p.add_argument("--margin", type=int, metavar="PIXELS", help="seen around a tile (default: 48 at most)")
    p.add_argument("--device", default="auto", help="cpu, cuda, mps, xpu (default: what torch finds)")
    p.add_argument(
        "--dtype", default="auto", help="float32, bfloat16, float16 (default: as the device likes)"
    )
    p.set_defaults(run=upscale)

    p = commands.add_parser(
        "preprocess",
        help="make a hint for a control network from a picture",
        description="Make a hint for a control network from a picture, as a control unit would.",
        epilog="minisd preprocess photo.jpg edges.png canny",
    )
    p.add_argument("picture", help="PNG, JPEG or WebP")
    p.add_argument("target", help="PNG to write")
    p.add_argument("preprocessor", choices=[n for n in PREPROCESSORS if n != "none"])
    p.set_defaults(run=preprocess)


def upscale(args: argparse.Namespace) -> dict[str, object]:
    from minisd.metadata import save_png
    from minisd.picture import Picture
    from minisd.upscale import load_upscaler

    picture = Picture.of(args.picture)
    check_folder(args.target)
    upscaler = load_upscaler(args.upscaler, device=args.device, dtype=args.dtype)
    made = upscaler(picture.image, tile=None if args.whole else args.tile, margin=args.margin)
    path = save_png(made, args.target, {})
    if not args.json:
        sys.stdout.write(f"{path}  {made.width} x {made.height}\n")
    return {"path": str(path), "width": made.width, "height": made.height, "scale": upscaler.scale}


def preprocess(args: argparse.Namespace) -> dict[str, object]:
    from minisd.metadata import save_png
    from minisd.picture import Picture
    from minisd.preprocess import hint

    picture = Picture.of(args.picture)
    check_folder(args.target)
    path = save_png(hint(picture.image, args.preprocessor), args.target, {})
    if not args.json:
        sys.stdout.write(f"{path}\n")
    return {"path": str(path), "preprocessor": args.preprocessor}


def check_folder(target: str) -> None:
    """Before work is done for it."""
    if not os.path.isdir(os.path.dirname(os.path.abspath(target))):
        raise ImageError(f"the folder of {target} does not exist; make it first")
