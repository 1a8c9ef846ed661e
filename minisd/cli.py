"""The command line: a thin face over Request -> Result. `minisd COMMAND --help` explains each command.

The flags of `txt2img` are the fields of Request. Exit codes: 0 done, 1 failed, 2 wrong request or flags, 3
wrong file, 130 stopped.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
import warnings
from typing import TextIO

from minisd import keep_freed_memory
from minisd.commands import MODULES
from minisd.errors import Cancelled, CheckpointError, CheckpointWarning, MinisdError, RequestError


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog="minisd",
        description="Stable Diffusion, small and readable: pictures from text with SD1, SD2 and SDXL files.",
        epilog='Try: minisd txt2img "a red apple" -o apple.png; minisd img2img apple.png "a green apple"',
    )
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name in MODULES:
        importlib.import_module(f"minisd.commands.{name}").add(commands)
    for p in commands.choices.values():
        p.add_argument("--json", action="store_true", help="write one JSON object to standard output")
    return top


def fail(args: argparse.Namespace, error: Exception, code: int) -> int:
    """One line on standard error; with --json the same as an object on standard output."""
    if args.json:
        field = getattr(error, "field", None)
        kind = type(error).__name__
        sys.stdout.write(
            json.dumps({"error": str(error), "kind": kind, **({"field": field} if field else {})}) + "\n"
        )
    else:
        sys.stderr.write(f"minisd: {error}\n")
    return code


def warned(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """On standard error; one about a file is one line, without the place in the source."""
    if issubclass(category, CheckpointWarning):
        sys.stderr.write(f"minisd: warning: {message}\n")
    else:
        sys.stderr.write(warnings.formatwarning(message, category, filename, lineno, line))


def main(argv: list[str] | None = None) -> int:
    args = parser().parse_args(argv)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = warned
            if getattr(args, "keep_freed_memory", False):
                keep_freed_memory()
            answer = args.run(args)
        if args.json:
            sys.stdout.write(json.dumps(answer, ensure_ascii=False) + "\n")
        sys.stdout.flush()
        return answer.get("exit_code", 0)
    except RequestError as error:
        return fail(args, error, 2)
    except CheckpointError as error:
        return fail(args, error, 3)
    except (Cancelled, KeyboardInterrupt):
        sys.stderr.write("\nminisd: stopped\n")
        return 130
    except BrokenPipeError:
        os.dup2(
            os.open(os.devnull, os.O_WRONLY), 1
        )  # the reader left; let the interpreter's last flush go nowhere
        return 1
    except (MinisdError, OSError) as error:
        return fail(args, error, 1)


if __name__ == "__main__":
    sys.exit(main())
