"""`minisd kernels`: the laboratory. What there is, whether it is right, how fast, and what it does to a
picture."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from minisd.errors import MinisdError

if TYPE_CHECKING:
    from minisd.commands import Commands
    from minisd.engine import Engine
    from minisd.request import Request

OWN = "a Python file that registers kernels of its own (docs/kernels.md)"


def add(commands: Commands) -> None:
    p = commands.add_parser(
        "kernels",
        help="list, check, time and compare kernels",
        description="The kernel laboratory. Without a GPU, Triton's kernels run under its interpreter "
        "(right, slow, not timed), and their registers and memory are those of compiling ahead of time.",
        epilog="minisd kernels check my_attention.py",
    )
    kinds = p.add_subparsers(dest="kind", required=True, metavar="KIND")

    k = kinds.add_parser("list", help="operations, implementations, and why one cannot run here")
    k.add_argument("file", nargs="?", help=OWN)
    k.add_argument("--family", help="sd1, sd2, sdxl: also what each site of it runs")
    k.add_argument("--size", type=int, default=512, help="pixels (default: 512)")
    k.set_defaults(run=overview)

    k = kinds.add_parser("check", help="error against float64, bits, unwritten memory, resources")
    k.add_argument("file", nargs="?", help=OWN)
    k.add_argument("--op", nargs="+", default=[], help="only these operations")
    k.add_argument("--name", nargs="+", default=["triton"], help="only these implementations (triton)")
    k.add_argument("--full", action="store_true", help="every site of the real models; for a GPU")
    k.add_argument("--resources", nargs="*", metavar="ARCH", help="compile for these: sm_90 gfx942 ...")
    k.add_argument("--record", metavar="FILE", help="add the results to it, a line of JSON")
    k.set_defaults(run=check)

    k = kinds.add_parser("bench", help="time at the sites of a family, beside the floor")
    k.add_argument("file", nargs="?", help=OWN)
    k.add_argument("--op", nargs="+", default=[], help="only these operations")
    k.add_argument("--family", default="sd1", help="sd1, sd2, sdxl (default: sd1)")
    k.add_argument("--size", type=int, default=512, help="pixels (default: 512)")
    k.add_argument("--dtype", choices=("bfloat16", "float16", "float32"), default="bfloat16")
    k.add_argument("--record", metavar="FILE", help="add the results to it, a line of JSON")
    k.set_defaults(run=bench)

    for name, what, shown in (
        ("trace", "two runs layer by layer: where they part, how the difference grows", "--svg"),
        ("effect", "two runs' latents after every step, and their pictures", "--picture"),
    ):
        k = kinds.add_parser(name, help=what)
        k.add_argument("prompt", nargs="?", default="a red apple")
        k.add_argument("--model", help="file or folder (default: the embedded model)")
        k.add_argument("--a", default="auto", metavar="NAMES", help="kernels of the first run")
        k.add_argument("--b", default="auto", metavar="NAMES", help="kernels of the second")
        k.add_argument("--dtypes", nargs=2, default=["auto", "auto"], metavar=("A", "B"))
        k.add_argument("--devices", nargs=2, default=["auto", "auto"], metavar=("A", "B"))
        k.add_argument("--steps", type=int, default=2, help="of the run (default: 2)")
        k.add_argument("--seed", type=int, default=0)
        k.add_argument("--size", type=int, default=None, help="pixels (default: the model's own)")
        k.add_argument(shown, metavar="FILE", dest="shown", help="write a picture of it")
        k.add_argument("--record", metavar="FILE", help="add the results to it, a line of JSON")
        k.set_defaults(run=trace if name == "trace" else effect)
    for k in kinds.choices.values():
        k.add_argument("--json", action="store_true", help="write one JSON object to standard output")


def told(args: argparse.Namespace, answer: tuple[dict[str, object], str]) -> dict[str, object]:
    if not args.json:
        sys.stdout.write(answer[1] + "\n")
    return answer[0]


def overview(args: argparse.Namespace) -> dict[str, object]:
    from minisd.lab import work

    return told(args, work.overview(args.file, args.family, args.size))


def check(args: argparse.Namespace) -> dict[str, object]:
    from minisd.lab import work

    work.interpret()

    archs = args.resources if args.resources is not None else []
    if args.resources == []:
        archs = ["sm_80", "sm_90", "sm_100", "sm_120", "gfx942"]
    answer = work.checked(
        args.file,
        args.op,
        [] if args.file is not None else args.name,
        full=args.full,
        resources=archs,
        record=args.record,
        say=sys.stderr.write,
    )
    found = told(args, answer)
    if not found["ok"] and not args.json:
        raise MinisdError("the kernel is wrong in the places named above")
    return found


def bench(args: argparse.Namespace) -> dict[str, object]:
    from minisd.lab import work

    answer = work.benched(args.file, args.op, args.family, args.size, record=args.record, dtype=args.dtype)
    return told(args, answer)


def prepared(args: argparse.Namespace) -> tuple[tuple[Engine, Engine], Request]:
    """Two engines and the request that both draw."""
    from minisd.lab.work import interpret, two_engines
    from minisd.request import Request

    interpret()
    size: dict[str, object] = {} if args.size is None else {"width": args.size, "height": args.size}
    request = Request.from_dict({"prompt": args.prompt, "steps": args.steps, "seed": args.seed, **size})
    dtypes, devices = (args.dtypes[0], args.dtypes[1]), (args.devices[0], args.devices[1])
    return two_engines(args.model, args.a, args.b, dtypes, devices), request


def trace(args: argparse.Namespace) -> dict[str, object]:
    engines, request = prepared(args)
    from minisd.lab import work

    return told(args, work.traced(engines, request, args.shown, args.record))


def effect(args: argparse.Namespace) -> dict[str, object]:
    engines, request = prepared(args)
    from minisd.lab import work

    return told(args, work.effected(engines, request, args.shown, args.record))
