"""Triton's interpreter (TRITON_INTERPRET=1) made to multiply bfloat16 rightly, while a `with` block lasts.

It keeps bfloat16 as 16-bit integers and hands them to tl.dot as they are: products are off by nine orders of
magnitude and nothing is raised (Triton 3.6 and 3.9; `tests/kernels/test_interpreter.py` shows it). Widened to
float32 first, which is exact, the product is that of a tensor core with float32 sums.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np


def is_widened() -> bool:
    from triton.runtime import interpreter

    return getattr(interpreter.InterpreterBuilder.create_dot, "widens", False)


@contextmanager
def widened() -> Iterator[None]:
    """Inside: tl.dot of bfloat16 is right under the interpreter. For checks and tests, one at a time."""
    import triton.language as tl
    from triton.runtime import interpreter

    before = interpreter.InterpreterBuilder.create_dot

    def wide(handle: interpreter.TensorHandle) -> interpreter.TensorHandle:
        if handle.dtype.scalar != tl.bfloat16:
            return handle
        return interpreter.TensorHandle((handle.data.astype(np.uint32) << 16).view(np.float32), tl.float32)

    def create_dot(self: object, a: object, b: object, *rest: object) -> object:
        return before(self, wide(a), wide(b), *rest)  # pyright: ignore[reportArgumentType]

    create_dot.widens = True  # pyright: ignore[reportFunctionMemberAccess]  # what is_widened asks
    interpreter.InterpreterBuilder.create_dot = create_dot  # pyright: ignore[reportAttributeAccessIssue]
    try:
        yield
    finally:
        interpreter.InterpreterBuilder.create_dot = before
