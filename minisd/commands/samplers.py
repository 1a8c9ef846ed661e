"""`minisd samplers`: the table of names."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from minisd.commands import Commands


def add(commands: Commands) -> None:
    p = commands.add_parser(
        "samplers",
        help="list samplers and schedules",
        description="List the samplers with their order of convergence, network calls per step, noise, own "
        "schedule, and the names they have in other programs.",
    )
    p.set_defaults(run=samplers)


def samplers(args: argparse.Namespace) -> dict[str, object]:
    from minisd.samplers.names import SAMPLERS, SCHEDULES

    rows: list[dict[str, object]] = []
    for s in SAMPLERS.values():
        names = {"a1111": s.a1111, "sdnext": s.sdnext, "diffusers": s.diffusers, "comfy": s.comfy}
        facts = {"name": s.name, "order": s.order, "calls": s.calls, "noise": s.noise, "schedule": s.schedule}
        rows.append({**facts, **names, "others": list(s.others)})
    if not args.json:
        widths = {"name": 20, "order": 6, "calls": 6, "noise": 9, "schedule": 12, "a1111": 18, "sdnext": 18}
        sys.stdout.write("".join(f"{h:<{w}}" for h, w in widths.items()) + "comfy\n")
        for row in rows:
            shown = {h: str("-" if v is None else v) for h, v in row.items()}
            sys.stdout.write("".join(f"{shown[h]:<{w}}" for h, w in widths.items()) + shown["comfy"] + "\n")
        sys.stdout.write(f"schedules: {', '.join(SCHEDULES)}\n")
    return {"samplers": rows, "schedules": [{"name": s.name, "label": s.label} for s in SCHEDULES.values()]}
