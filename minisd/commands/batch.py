"""`minisd batch`: many requests from a file of lines."""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from contextlib import AbstractContextManager
from pathlib import Path
from typing import IO, TYPE_CHECKING

from minisd.commands.flags import add_model_flags, engine_of, refiner_of
from minisd.commands.progress import Bar
from minisd.errors import RequestError, quoted

if TYPE_CHECKING:
    from minisd.commands import Commands


def add(commands: Commands) -> None:
    p = commands.add_parser(
        "batch",
        help="draw every line of a file",
        description="Draw every line of a file: the fields of a request as a JSON object, or OpenAI's batch "
        "form (custom_id, method, url, body). Equal lines are drawn once. A line that is wrong is told of by "
        "its number, and the others are drawn.",
        epilog="minisd batch jobs.jsonl -o pictures --resume    exit code: 0 all drawn, 1 some lines failed",
    )
    p.add_argument("jobs", help="the file, or - for standard input")
    p.add_argument(
        "-o",
        "--output",
        default="batch",
        metavar="DIR",
        help="where pictures and results.jsonl go (default: batch)",
    )
    p.add_argument("--resume", action="store_true", help="keep the pictures that are there already, whole")
    p.add_argument("--refiner", metavar="PATH", help="a model that takes over on the way")
    add_model_flags(p)
    p.add_argument("-q", "--quiet", action="store_true", help="say nothing but errors")
    p.set_defaults(run=batch)


def opened(name: str) -> AbstractContextManager[IO[bytes]]:
    """The lines, in a file that can be sought in."""
    if name == "-":
        spool = tempfile.TemporaryFile()
        shutil.copyfileobj(sys.stdin.buffer, spool)
        spool.seek(0)
        return spool
    if not Path(name).is_file():
        raise RequestError(f"there is no file {quoted(name)}; give one with a job on each line, or -")
    return open(name, "rb")


def batch(args: argparse.Namespace) -> dict[str, object]:
    from minisd.batch import draw_batch

    bar = Bar(sys.stderr.isatty() and not args.quiet and not args.json)
    with opened(args.jobs) as file:
        folder = Path(args.output)
        folder.mkdir(parents=True, exist_ok=True)
        bar.write("loading")
        with engine_of(args) as engine, refiner_of(args) as refiner:
            try:
                done = draw_batch(
                    engine,
                    file,  # type: ignore[arg-type]  # opened for bytes
                    folder,
                    resume=args.resume,
                    refiner=refiner,
                    on_event=bar if bar.show else None,
                )
            finally:
                bar.clear()
    if not args.json:
        told = "".join(f"minisd: line {n} failed\n" for n in done.failed[:20])
        more = len(done.failed) - 20
        sys.stderr.write(told + (f"minisd: and {more} more\n" if more > 0 else ""))
        if not args.quiet:
            parts = [(done.drawn, "drawn"), (done.kept, "there already"), (done.same, "the same as others")]
            said = ", ".join(f"{n} {what}" for n, what in [*parts, (len(done.failed), "failed")] if n)
            sys.stdout.write(f"{done.results}  lines: {said}\n")
    return {
        "results": str(done.results),
        "drawn": done.drawn,
        "kept": done.kept,
        "same": done.same,
        "failed": done.failed,
        "exit_code": 1 if done.failed else 0,
    }
