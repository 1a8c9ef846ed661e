"""Conditions that implementations share: each gives the reason why it cannot be called at a site, or None."""

from __future__ import annotations

import importlib.util
import os

import torch

from minisd.kernels.avx512.build import bfloat16_products, missing
from minisd.kernels.configs import ARCHITECTURES, row_of
from minisd.kernels.registry import Condition, Site

FLOATS = (torch.float32, torch.bfloat16, torch.float16)


def interpreted() -> bool:
    """Whether Triton runs kernels as Python on a CPU: TRITON_INTERPRET=1, set before Triton is imported."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def triton_missing(device: str) -> str | None:
    """Why Triton runs nowhere on this kind of device, or None."""
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed"
    if device != "cuda" and not interpreted():
        return f"Triton compiles for GPUs, not for {device} (TRITON_INTERPRET=1 runs it slowly anywhere)"
    return None


def triton_runs(site: Site) -> str | None:
    reason = triton_missing(site.device)
    if reason is not None:
        return reason
    if interpreted():
        return interpreter_takes(site)
    if row_of(site.arch) is None:
        return f"there are tile sizes for {', '.join(ARCHITECTURES)}, not for {site.arch}"
    return None


def interpreter_takes(site: Site) -> str | None:
    """Triton's interpreter multiplies bfloat16 as if its bits were integers, without a word."""
    if site.dtype != torch.bfloat16 or widens():
        return None
    return "Triton's interpreter multiplies bfloat16 wrongly; take float32, or `minisd kernels check`"


def widens() -> bool:
    """Whether the interpreter has been told to widen bfloat16 (`interpreter.widened`)."""
    from minisd.kernels.interpreter import is_widened

    return is_widened()


def avx512_missing(device: str) -> str | None:
    """Why the AVX-512 kernels run nowhere on this kind of device, or None."""
    return f"it is for CPUs, not for {device}" if device != "cpu" else missing()


def avx512_runs(site: Site) -> str | None:
    reason = avx512_missing(site.device)
    if reason is None and site.dtype == torch.bfloat16 and not bfloat16_products():
        return "this CPU does not multiply bfloat16 (AVX512_BF16)"
    return reason


def on(*devices: str) -> Condition:
    def condition(site: Site) -> str | None:
        return None if site.device in devices else f"runs on {' and '.join(devices)}, not on {site.device}"

    return condition


def of(*dtypes: torch.dtype) -> Condition:
    names = ", ".join(str(t).removeprefix("torch.") for t in dtypes)

    def condition(site: Site) -> str | None:
        return (
            None if site.dtype in dtypes else f"takes {names}, not {str(site.dtype).removeprefix('torch.')}"
        )

    return condition


def head_dim(most: int, multiple: int = 8) -> Condition:
    def condition(site: Site) -> str | None:
        if site.d % multiple == 0 and site.d <= most:
            return None
        which = f" that are multiples of {multiple}" if multiple > 1 else ""
        return f"takes head dims up to {most}{which}, not {site.d}"

    return condition


def width(most: int) -> Condition:
    def condition(site: Site) -> str | None:
        return None if site.d <= most else f"holds a row of up to {most} numbers, not {site.d}"

    return condition
