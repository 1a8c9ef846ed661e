"""Where Triton's kernels run in tests: on a GPU if there is one, else under the interpreter."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from minisd.kernels.interpreter import widened

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@contextmanager
def right_products() -> Iterator[None]:
    """Inside: bfloat16 is multiplied rightly, also by the interpreter."""
    if DEVICE == "cuda":
        yield
    else:
        with widened():
            yield
