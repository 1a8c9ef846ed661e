"""`minisd info`, `verify` and `trace`: what a picture says, whether it is true, where two part."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING

from minisd.commands.flags import add_model_flags, engine_of, refiner_of
from minisd.errors import CheckpointError, ImageError

if TYPE_CHECKING:
    from minisd.commands import Commands


def add(commands: Commands) -> None:
    p = commands.add_parser(
        "info",
        help="say how a picture was made",
        description="Say how a picture was made, by what its file carries: our record, or the text of other "
        "programs.",
    )
    p.add_argument("picture", help="PNG, JPEG, WebP or AVIF")
    p.set_defaults(run=info)

    p = commands.add_parser(
        "verify",
        help="draw a picture again and prove it",
        description="Check that a picture is what its record says: record whole, pixels untouched, the same "
        "model files, and every step of a new run equal.",
        epilog="exit code: 0 proven, 1 differs, 2 cannot be checked here, 3 no record that can be read",
    )
    p.add_argument("picture", help="a picture that minisd made")
    add_needed_flags(p)
    p.add_argument(
        "--step", type=int, metavar="K", help="take step K alone again; needs what --keep-steps kept"
    )
    p.add_argument("--key", metavar="PUBLIC", help="the key (PEM) that must have signed the record")
    p.add_argument("--quick", action="store_true", help="check file and record only, without drawing")
    add_model_flags(p)
    p.set_defaults(run=verify)

    p = commands.add_parser(
        "trace",
        help="say where two pictures' runs part",
        description="Compare the records of two pictures: what they say differently, the first step whose "
        "digests differ, and, drawing both again, the first layer whose output does.",
        epilog="exit code: 0 every digest agrees, 1 they part",
    )
    p.add_argument("picture", help="a picture that minisd made")
    p.add_argument("other", help="another one")
    p.add_argument("--other-model", metavar="PATH", help="the model of the other picture, if not the same")
    add_needed_flags(p)
    p.add_argument("--quick", action="store_true", help="compare the records only, without drawing")
    p.add_argument("--plot", metavar="FILE", help="write an SVG of every layer's difference")
    add_model_flags(p)
    p.set_defaults(run=trace)


def add_needed_flags(p: argparse.ArgumentParser) -> None:
    """What drawing again takes beside the model."""
    p.add_argument(
        "--with",
        dest="needed",
        action="append",
        default=[],
        metavar="FILE",
        help="an image, mask, LoRA or network that the request used, found by content; once for each",
    )
    p.add_argument("--refiner", metavar="PATH", help="the model that took over on the way")


def info(args: argparse.Namespace) -> dict[str, object]:
    from minisd.infotext import parsed
    from minisd.metadata import read_file

    found = read_file(args.picture)
    texts = dict(found.texts)
    record: object = None
    if "minisd" in texts:
        try:
            record = json.loads(texts["minisd"])
        except (ValueError, RecursionError):
            record = None
    out: dict[str, object] = {
        "format": found.format,
        "width": found.width,
        "height": found.height,
        "parameters": texts.get("parameters"),
        "record": record,
        "settings": asdict(parsed(texts["parameters"])) if "parameters" in texts else None,
        "other": sorted(set(texts) - {"parameters", "minisd"}),
    }
    if not args.json:
        sys.stdout.write(f"{found.path.name}: {found.format}, {found.width} x {found.height}\n")
        sys.stdout.write(f"{texts.get('parameters', 'no parameters text')}\n")
        sheet = record.get("sheet") if isinstance(record, dict) else None
        if isinstance(sheet, dict):
            axes = sheet.get("axes")
            names = (
                [str(a.get("name")) for a in axes if isinstance(a, dict)] if isinstance(axes, list) else []
            )
            sys.stdout.write(f"contact sheet of {sheet.get('cells')} pictures: {' x '.join(names)}\n")
        elif isinstance(record, dict):
            receipt = record.get("receipt")
            marks = receipt.get("marks", []) if isinstance(receipt, dict) else []
            sys.stdout.write(f"record of minisd {record.get('minisd')}, receipt over {len(marks)} digests\n")
        if out["other"]:
            sys.stdout.write(f"also holds: {', '.join(sorted(set(texts) - {'parameters', 'minisd'}))}\n")
    return out


def verify(args: argparse.Namespace) -> dict[str, object]:
    from minisd.signing import public_key
    from minisd.verify import Finding, integrity, record_of, signed_by
    from minisd.verify import verify as check

    key = None if args.key is None else public_key(args.key)
    try:
        record = record_of(args.picture)
        finding = integrity(args.picture, record, key)
    except ImageError as error:
        finding = Finding("cannot" if "carries no record" in str(error) else "malformed", str(error))
    else:
        if finding is None and args.quick:
            what = "record, signature and pixels are whole; nothing was drawn, so nothing is proven"
            finding = Finding("cannot", what, signed=signed_by(record, key))
        elif finding is None:
            try:
                with engine_of(args) as engine, refiner_of(args) as refiner:
                    finding = check(
                        args.picture, engine, args.needed, refiner=refiner, step=args.step, key=key
                    )
            except CheckpointError as error:
                finding = Finding("cannot", str(error), first="model")
    if not args.json:
        sys.stdout.write(f"{finding.verdict}: {finding.what}\n")
        for name, text in (("guarantee", finding.level), ("signature", finding.signed)):
            sys.stdout.write(f"{name:<10} {text}\n" if text else "")
        for name, value in finding.size.items():
            sys.stdout.write(f"{name:<10} {value:g}\n")
        for name, text in finding.other.items():
            sys.stdout.write(f"{name:<10} {text}\n")
    return {**asdict(finding), "exit_code": finding.code}


def trace(args: argparse.Namespace) -> dict[str, object]:
    from minisd.lab.pictures import apart, layers, svg
    from minisd.verify import Given

    found = apart(args.picture, args.other)
    answer: dict[str, object] = {**found.to_dict(), "exit_code": int(found.first is not None)}
    if not args.json:
        sys.stdout.write(f"{found}\n")
    if found.first is None or args.quick:
        return answer
    other = argparse.Namespace(**vars(args))
    other.model = args.other_model or args.model
    with engine_of(args) as a, engine_of(other) as b, refiner_of(args) as refiner:
        traced = layers(args.picture, args.other, a, b, Given(args.needed, refiner))
    if args.plot is not None:
        with open(args.plot, "w", encoding="utf-8") as file:
            file.write(svg(traced, "relative difference of every layer"))
    if not args.json:
        sys.stdout.write(f"drawn again here, {traced}\n")
        if traced.first is None:
            sys.stdout.write("what parted them is machine, plan, versions or model, as told above\n")
    return {**answer, "layers": traced.to_dict()["places"]}
