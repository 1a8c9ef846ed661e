"""A person's own file: loaded by its path, under a name of its own.

It holds functions with the signature of an operation (`minisd/kernels/reference.py`) and registers them:

    from minisd.lab.own import register

    @register("self_attention")
    def my_attention(q, k, v, num_heads, *, causal=False): ...
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path

from minisd.errors import MinisdError
from minisd.kernels.registry import OPERATIONS, Condition, Function, Implementation

MARK = "_minisd_implementation"


def register(op: str, *conditions: Condition, how: str = "") -> Callable[[Function], Function]:
    """Marks a function as an implementation of an operation, under its own name. Each condition gives the
    reason why it cannot be called at a site, or None. Raises ValueError for an unknown operation."""
    if op not in OPERATIONS:
        raise ValueError(f"there is no operation {op!r}; known are {', '.join(OPERATIONS)}")

    def marked(function: Function) -> Function:
        name = getattr(function, "__name__", "own")
        one = Implementation(op, name, function, how or (function.__doc__ or "").split("\n")[0], conditions)
        setattr(function, MARK, one)
        return function

    return marked


def load_own(path: str | Path) -> list[Implementation]:
    """What the file registers. It is run: a person's own code. Raises MinisdError if there is nothing."""
    file = Path(path)
    spec = importlib.util.spec_from_file_location(f"minisd_own_{file.stem}", file)
    if spec is None or spec.loader is None or not file.is_file():
        raise MinisdError(f"{file} is not a Python file; give the path of one that registers a kernel")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found = [getattr(value, MARK) for value in vars(module).values() if hasattr(value, MARK)]
    if not found:
        raise MinisdError(f"{file} registers nothing; mark a function with @register (minisd/lab/own.py)")
    return found
