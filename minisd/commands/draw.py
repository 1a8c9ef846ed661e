"""`minisd txt2img`, `img2img`, `inpaint`, `outpaint`: a picture from text, or from a picture and text.

One mechanism under four names: each takes every field of a Request, and what it must have stands first.
"""

from __future__ import annotations

import argparse
import os
import sys
from dataclasses import fields
from typing import TYPE_CHECKING, cast

from minisd.commands.flags import add_model_flags, add_request_flags, engine_of, refiner_of
from minisd.commands.progress import Bar
from minisd.errors import ImageError, RequestError
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
    p.add_argument("prompt", nargs="?", help="what the picture shows")
    p.add_argument(
        "--from",
        dest="source",
        metavar="PICTURE",
        help="make this picture again, by what its file says; other flags override",
    )
    add_the_rest(p)

    p = commands.add_parser(
        "img2img",
        help="draw a picture from a picture and text",
        description="Turn a picture to noise a little (--strength) and draw on from there.",
        epilog='minisd img2img apple.png "a green apple" -o green.png --strength 0.6',
    )
    p.add_argument("image", help="the picture to start from: PNG, JPEG or WebP")
    p.add_argument("prompt", nargs="?", default="", help="what the new picture shows")
    add_the_rest(p, "image")

    p = commands.add_parser(
        "inpaint",
        help="draw a part of a picture anew",
        description="Draw a picture anew where a mask is white; where it is black, every pixel stays.",
        epilog='minisd inpaint fruit.png mask.png "a lemon" -o lemon.png --mask-fill fill --strength 1',
    )
    p.add_argument("image", help="the picture: PNG, JPEG or WebP")
    p.add_argument("mask", help="as large as the picture: white is drawn anew, black stays")
    p.add_argument("prompt", nargs="?", default="", help="what the picture shows then")
    add_the_rest(p, "image", "mask")

    p = commands.add_parser(
        "outpaint",
        help="draw on around a picture",
        description="Draw what lies around a picture; every pixel of it stays.",
        epilog='minisd outpaint house.png "a house in a field" --by 64 0 64 0 -o wide.png --strength 1',
    )
    p.add_argument("image", help="the picture: PNG, JPEG or WebP")
    p.add_argument("prompt", nargs="?", default="", help="what the larger picture shows")
    p.add_argument(
        "--by",
        dest="outpaint",
        type=int,
        nargs=4,
        required=True,
        metavar="N",
        help="pixels to draw on the LEFT TOP RIGHT BOTTOM, multiples of 8",
    )
    add_the_rest(p, "image", "outpaint")


def add_the_rest(p: argparse.ArgumentParser, *without: str) -> None:
    """The flags that all of these commands have; without: fields that stand elsewhere."""
    p.add_argument(
        "-o",
        "--output",
        default="out.png",
        metavar="FILE",
        help="png, jpg, webp or avif; several become FILE-1, FILE-2, ...",
    )
    p.add_argument("--refiner", metavar="PATH", help="a model that takes over on the way (--refiner-at)")
    add_request_flags(p, *without)
    add_model_flags(p)
    add_keeping_flags(p)
    p.add_argument("-q", "--quiet", action="store_true", help="say nothing but errors")
    p.set_defaults(run=txt2img)
    if without:
        p.set_defaults(source=None)


def add_keeping_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("what is kept with the picture (docs/receipts.md)")
    group.add_argument(
        "--keep-steps",
        action="store_true",
        help="also what the network gave in every step, so that `minisd verify --step` can check one alone",
    )
    group.add_argument("--sign", metavar="KEY", help="sign the record with this Ed25519 key (PEM)")
    group.add_argument(
        "--c2pa",
        nargs=2,
        metavar=("CHAIN", "KEY"),
        help="write C2PA content credentials, signed with this certificate chain and its key (PEM)",
    )
    group.add_argument(
        "--c2pa-algorithm", default="es256", metavar="NAME", help="of that key (default: es256)"
    )


def asked(args: argparse.Namespace) -> tuple[Request, tuple[str, ...]]:
    """The request of the flags, over that of the picture given by --from; and what of the latter's settings
    could not be carried over."""
    names = {f.name for f in fields(Request)}
    given = {k: v for k, v in vars(args).items() if k in names and v is not None}
    left: tuple[str, ...] = ()
    if args.source is not None:
        from minisd.metadata import read_file

        texts = read_file(args.source).texts
        if "minisd" in texts:
            from minisd.verify import record_of

            base = dict(cast(dict[str, object], record_of(args.source)["request"]))
        elif "parameters" in texts:
            from minisd.infotext import request_of

            base, left = request_of(texts["parameters"])
        else:
            raise ImageError(f"{args.source} does not say how it was made; there is nothing to recreate")
        given = base | given
    elif "prompt" not in given:
        raise RequestError("say what the picture shows, or give --from PICTURE", field="prompt")
    return Request.from_dict(given), left


def txt2img(args: argparse.Namespace) -> dict[str, object]:
    from minisd.credentials import Credentials
    from minisd.signing import SigningKey
    from minisd.trail import Trail

    request, left = asked(args)
    target = args.output
    if not os.path.isdir(os.path.dirname(os.path.abspath(target))):
        raise ImageError(f"the folder of {target} does not exist; make it first")
    key = None if args.sign is None else SigningKey.of(args.sign)
    chain = None if args.c2pa is None else Credentials.of(args.c2pa[0], args.c2pa[1], args.c2pa_algorithm)
    if left and not args.json and not args.quiet:
        sys.stderr.write(f"not carried over: {'; '.join(left)}\n")
    bar = Bar(sys.stderr.isatty() and not args.quiet and not args.json)
    bar.write("loading")
    with engine_of(args, request) as engine, refiner_of(args) as refiner:
        try:
            trail = Trail(listen=True) if args.keep_steps else None
            result = engine.run(request, on_event=bar, refiner=refiner, trail=trail)
        finally:
            bar.clear()
    paths = result.save(target, key=key, credentials=chain)
    if not args.json and not args.quiet:
        spent = sum(result.drawing.seconds.values())
        for path, seed in zip(paths, result.request.seeds(), strict=True):
            sys.stdout.write(f"{path}  seed {seed}\n")
        read, counted = result.drawing.tokens[1], result.drawing.tokens[0]
        cut = f"; only {read} of the prompt's {counted} tokens were read" if read < counted else ""
        sys.stdout.write(f"{len(paths)} picture{'s' * (len(paths) > 1)} in {spent:.1f} s{cut}\n")
    return {
        "not_carried_over": list(left),
        "pictures": [{"path": str(p), **result.record(i)} for i, p in enumerate(paths)],
    }
