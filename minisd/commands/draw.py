"""`minisd txt2img`: a picture from text."""

from __future__ import annotations

import argparse
import os
import sys
import time
from dataclasses import fields
from typing import TYPE_CHECKING

from minisd.commands.flags import add_model_flags, add_request_flags, refiner_of
from minisd.commands.progress import Bar
from minisd.errors import ImageError
from minisd.request import Request

if TYPE_CHECKING:
    from minisd.commands import Commands


def add(commands: Commands) -> None:
    p = commands.add_parser(
        "txt2img",
        help="draw a picture from text",
        description="Draw a picture from text and write it as PNG, with how it was made inside.",
        epilog='minisd txt2img "a red apple" -o apple.png --seed 7 --count 4',
    )
    p.add_argument("prompt", help="what the picture shows")
    p.add_argument(
        "-o", "--output", default="out.png", metavar="FILE", help="PNG; several become FILE-1, FILE-2, ..."
    )
    p.add_argument("--refiner", metavar="PATH", help="a model that takes over on the way (--refiner-at)")
    add_request_flags(p)
    add_model_flags(p)
    p.add_argument("-q", "--quiet", action="store_true", help="say nothing but errors")
    p.set_defaults(run=txt2img)


def txt2img(args: argparse.Namespace) -> dict[str, object]:
    names = {f.name for f in fields(Request)}
    request = Request.from_dict({k: v for k, v in vars(args).items() if k in names})
    target = args.output
    if not os.path.isdir(os.path.dirname(os.path.abspath(target))):
        raise ImageError(f"the folder of {target} does not exist; make it first")
    bar = Bar(sys.stderr.isatty() and not args.quiet and not args.json)
    bar.write("loading")
    from minisd.engine import load

    with (
        load(
            args.model,
            vae=args.vae,
            text_encoder=args.text_encoder,
            text_encoder_2=args.text_encoder_2,
            ema=args.ema,
            device=args.device,
            dtype=args.dtype,
            vae_dtype=args.vae_dtype,
            attention=args.attention,
            kernels=args.kernels,
            vae_tile=args.vae_tile,
            loras=args.lora_dir,
            embeddings=args.embeddings,
        ) as engine,
        refiner_of(args) as refiner,
    ):
        bar.begun = time.perf_counter()
        try:
            result = engine.run(request, on_event=bar, refiner=refiner)
        finally:
            bar.clear()
    paths = result.save(target)
    if not args.json and not args.quiet:
        spent = sum(result.drawing.seconds.values())
        for path, seed in zip(paths, result.request.seeds(), strict=True):
            sys.stdout.write(f"{path}  seed {seed}\n")
        read, counted = result.drawing.tokens[1], result.drawing.tokens[0]
        cut = f"; only {read} of the prompt's {counted} tokens were read" if read < counted else ""
        sys.stdout.write(f"{len(paths)} picture{'s' * (len(paths) > 1)} in {spent:.1f} s{cut}\n")
    return {"pictures": [{"path": str(p), **result.record(i)} for i, p in enumerate(paths)]}
