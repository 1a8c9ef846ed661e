"""Starting a Triton kernel: the one place where tiles, warps, stages and rounding are handed over."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from torch import Tensor

Argument = Tensor | int | float
Constant = int | bool | str


class Kernel(Protocol):
    """What `triton.jit` makes: `kernel[grid](...)`."""

    def __getitem__(self, grid: tuple[int, ...], /) -> Callable[..., object]: ...


def launch(
    kernel: Kernel,
    grid: tuple[int, ...],
    arguments: tuple[Argument, ...],
    constants: dict[str, Constant],
    *,
    warps: int = 4,
    stages: int = 3,
) -> None:
    """Run the kernel once for each point of the grid.

    enable_fp_fusion (a * b + c rounded once) is said by name: Triton's default for it changes between
    versions, and the bits of every result with it.
    """
    kernel[grid](*arguments, **constants, num_warps=warps, num_stages=stages, enable_fp_fusion=True)
