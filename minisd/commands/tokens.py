"""`minisd tokens`: what becomes of a prompt: its texts over the steps, its chunks, weights and counts."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from minisd.request import Request

if TYPE_CHECKING:
    from minisd.commands import Commands

FLAGS = ("steps", "conventions", "prompt_language", "composition", "long_prompt")


def add(commands: Commands) -> None:
    p = commands.add_parser(
        "tokens",
        help="show how a prompt is read",
        description="Show how a prompt is read: what it says at which steps, and what each chunk of 75 "
        "tokens holds, with weights. Needs no model.",
        epilog='minisd tokens "a (red:1.3) apple, [tree:house:0.5]" --steps 20',
    )
    p.add_argument("prompt")
    p.add_argument("--negative-prompt", default="", metavar="PROMPT")
    p.add_argument("--steps", type=int, default=20, metavar="N", help="of the run (default: 20)")
    p.add_argument("--conventions", default="minisd", metavar="NAME", help="minisd, a1111, diffusers, sgm")
    for flag in FLAGS[2:]:
        p.add_argument("--" + flag.replace("_", "-"), default=None, metavar="NAME", help="as in txt2img")
    p.add_argument("--wildcards", metavar="DIR", help="lists that prompts may name: __colours__")
    p.add_argument("--seed", type=int, default=0, metavar="N", help="draws {a|b} and __list__ (default: 0)")
    p.set_defaults(run=tokens)


def tokens(args: argparse.Namespace) -> dict[str, object]:
    from minisd.text.account import read
    from minisd.text.written import Lists

    given = {name: getattr(args, name) for name in FLAGS}
    request = Request.from_dict(
        {"prompt": args.prompt, "negative_prompt": args.negative_prompt, "seed": args.seed, **given}
    )
    (request,) = Lists.of(args.wildcards).written_out(request)
    accounts, tags = read(request)
    data = {"prompts": [a.to_dict() for a in accounts], "tags": [str(tag) for tag in tags]}
    if args.json:
        return data
    for account in accounts:
        if account.field == "negative_prompt" and not args.negative_prompt:
            continue
        steps = f"steps {account.begin}-{account.end}"
        weight = "" if account.weight == 1.0 else f", weight {account.weight:g}"
        made = account.first
        cut = "" if made.used == made.counted else f", {made.used} of them read"
        sys.stdout.write(f"{account.field}, {steps}{weight}: {made.counted} tokens{cut}\n")
        for number, chunk in enumerate(made.chunks, start=1):
            sys.stdout.write(f"  chunk {number}: {len(chunk.ids)} of 75\n")
            for text, strength, count in chunk.runs():
                sys.stdout.write(f"    {strength:<6g} {count:>3}  {text!r}\n")
    for tag in tags:
        sys.stdout.write(f"tag {tag}\n")
    return data
