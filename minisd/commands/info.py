"""`minisd info` and `minisd verify`: what a picture says of itself, and whether it is true."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING

from minisd.commands.flags import add_model_flags, engine_of

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
        epilog="exit code: 0 proven, 1 differs, 2 cannot be checked here",
    )
    p.add_argument("picture", help="a picture that minisd made")
    p.add_argument(
        "--picture",
        dest="needed",
        action="append",
        default=[],
        metavar="FILE",
        help="an image that the request used, found by content; once for each",
    )
    add_model_flags(p)
    p.set_defaults(run=verify)


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
        if isinstance(record, dict):
            receipt = record.get("receipt")
            marks = receipt.get("marks", []) if isinstance(receipt, dict) else []
            sys.stdout.write(f"record of minisd {record.get('minisd')}, receipt over {len(marks)} digests\n")
        if out["other"]:
            sys.stdout.write(f"also holds: {', '.join(sorted(set(texts) - {'parameters', 'minisd'}))}\n")
    return out


def verify(args: argparse.Namespace) -> dict[str, object]:
    from minisd.verify import integrity, record_of
    from minisd.verify import verify as check

    record = record_of(args.picture)
    finding = integrity(args.picture, record)
    if finding is None:
        with engine_of(args) as engine:
            finding = check(args.picture, engine, args.needed)
    if not args.json:
        sys.stdout.write(f"{finding.verdict}: {finding.what}\n")
        if finding.level:
            sys.stdout.write(f"guarantee  {finding.level}\n")
        for name, value in finding.size.items():
            sys.stdout.write(f"{name:<10} {value:g}\n")
        for name, text in finding.other.items():
            sys.stdout.write(f"{name:<10} {text}\n")
    return {**asdict(finding), "exit_code": finding.code}
