"""The commands of `minisd`, one module for each group of them.

A module has `add(commands)`, which adds its parsers; each parser's `run` default is the function that does
the work. It writes for people to standard output unless `args.json`, and returns plain data, which `--json`
writes as one object. Nothing here imports torch until a command runs.
"""

from __future__ import annotations

import argparse

Commands = argparse._SubParsersAction  # pyright: ignore[reportPrivateUsage]  # argparse has no public name for it
MODULES = (
    "batch",
    "draw",
    "demo",
    "diff",
    "grid",
    "hashes",
    "info",
    "kernels",
    "lora",
    "models",
    "plan",
    "quantize",
    "samplers",
    "tokens",
    "upscale",
)
