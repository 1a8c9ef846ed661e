"""`minisd diff`: which tensors of two files differ, and by how much."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from minisd.commands import Commands
    from minisd.differences import Comparison, Difference


def add(commands: Commands) -> None:
    p = commands.add_parser(
        "diff",
        help="say which tensors of two files differ, and by how much",
        description="Say which tensors of two files differ, and by how much: the largest difference, and the "
        "L2 norm of the difference over that of A. Models are compared by the names of their networks, in "
        "whatever layout each is stored; other files by the names in them.",
        epilog="minisd diff a.safetensors b-folder",
    )
    p.add_argument("a", metavar="A", help="file, or folder in diffusers layout")
    p.add_argument("b", metavar="B")
    p.add_argument("--limit", type=int, default=20, metavar="N", help="tensors that are listed (default: 20)")
    p.add_argument("--exit-code", action="store_true", help="end with 1 if any tensor is not the same")
    p.set_defaults(run=run)


def run(args: argparse.Namespace) -> dict[str, object]:
    from minisd.differences import compare

    def show(done: int, of: int) -> None:
        sys.stderr.write(f"\r{done}/{of} tensors" + ("\n" if done == of else ""))

    found = compare(args.a, args.b, show if not args.json and sys.stderr.isatty() else None)
    if not args.json:
        sys.stdout.write(told(args.a, args.b, found, args.limit) + "\n")
    return {
        "a": {"path": args.a, "what": found.a},
        "b": {"path": args.b, "what": found.b},
        "same": found.same,
        "parts": found.totals(),
        "tensors": [d.to_dict() for d in found.largest_first],  # all that are not the same
        "exit_code": int(args.exit_code and not found.same),
    }


def told(a: str, b: str, found: Comparison, limit: int) -> str:
    lines = [f"A  {a}: {found.a}", f"B  {b}: {found.b}"]
    lines.append(f"{'':<16}  same  rounded  changed  shape  only A  only B  relative L2   largest")
    for part, t in found.totals().items():
        lines.append(
            f"{part:<16} {t['same']:>5}  {t['rounded']:>7}  {t['changed']:>7}  {t['shape']:>5}  "
            f"{t['only_a']:>6}  {t['only_b']:>6}  {number(t['relative_l2']):>11}  {number(t['max_abs']):>8}"
        )
    differ = found.largest_first
    lines += [row(d) for d in differ[: max(0, limit)]]
    if len(differ) > max(0, limit):
        lines.append(f"and {len(differ) - max(0, limit)} more that are not the same (--limit, --json)")
    if found.same:
        lines.append("every tensor is the same, bit by bit")
    return "\n".join(lines)


def number(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else "-"


def row(d: Difference) -> str:
    from minisd.errors import quoted

    name = quoted(f"{d.part} {d.name}", 200)[1:-1]  # a file's own words: escaped
    if d.a is None or d.b is None:
        return f"{name}: only in {'B' if d.a is None else 'A'}"
    if d.status == "shape":
        return f"{name}: {list(d.a[1])} in A, {list(d.b[1])} in B"
    kinds = "" if d.a[0] == d.b[0] else f", {str(d.a[0])[6:]} -> {str(d.b[0])[6:]}"
    kinds += " by rounding alone" if d.status == "rounded" else ""
    bad = f", {d.nonfinite} pairs not finite" if d.nonfinite else ""
    return (
        f"{name}: relative {number(d.relative)}, largest {d.max_abs:.3g}, {d.changed} of {d.values} values"
        f"{kinds}{bad}"
    )
