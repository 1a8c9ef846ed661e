"""`minisd plan`: where each part of a model would live, in what precision, why, and with how much memory."""

from __future__ import annotations

import argparse
import sys
from dataclasses import fields
from typing import TYPE_CHECKING

from minisd.commands.flags import add_plan_flags, wishes_of
from minisd.request import Request
from minisd.wishes import named_of

if TYPE_CHECKING:
    from minisd.commands import Commands

SIZES = ("width", "height", "count", "cfg_scale")  # of a request: what decides how much memory is needed


def add(commands: Commands) -> None:
    p = commands.add_parser(
        "plan",
        help="say how a model would run here, before loading it",
        description="Say where each part of a model would live, in what precision, why, and the most memory "
        "of each stage. Reads headers only.",
        epilog="minisd plan model.safetensors --memory 6GiB --width 1024 --height 1024",
    )
    p.add_argument("file", nargs="?", help="checkpoint file or diffusers folder (default: embedded)")
    p.add_argument("--vae", metavar="PATH", help="take the VAE from this file")
    p.add_argument("--text-encoder", metavar="PATH", help="take the text encoder from this file")
    p.add_argument("--text-encoder-2", metavar="PATH", help="take the second text encoder from this file")
    p.add_argument("--kernels", default="auto", metavar="NAMES", help="for each operation")
    defaults = {f.name: f.default for f in fields(Request)}
    for name in SIZES:
        kind = float if name == "cfg_scale" else int
        flag = "--" + name.replace("_", "-")
        p.add_argument(flag, type=kind, default=defaults[name], metavar="N", help="of the picture to be")
    add_plan_flags(p)
    p.set_defaults(run=show)


def show(args: argparse.Namespace) -> dict[str, object]:
    from minisd.engine import embedded_model
    from minisd.model import plan

    request = Request.from_dict({name: getattr(args, name) for name in SIZES})
    made = plan(
        args.file or embedded_model(),
        request,
        vae=args.vae,
        text_encoder=args.text_encoder,
        text_encoder_2=args.text_encoder_2,
        kernels=args.kernels,
        **named_of(wishes_of(args)),
    )
    if not args.json:
        sys.stdout.write(f"{made}\n")
    return made.to_dict()
