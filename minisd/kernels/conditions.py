"""Conditions that implementations share: each gives the reason why it cannot be called at a site, or None."""

from __future__ import annotations

import importlib.util
import os

import torch

from minisd.kernels.configs import ARCHITECTURES, row_of
from minisd.kernels.registry import Condition, Site

FLOATS = (torch.float32, torch.bfloat16, torch.float16)


def interpreted() -> bool:
    """Whether Triton runs kernels as Python on a CPU: TRITON_INTERPRET=1, set before Triton is imported."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def triton_runs(site: Site) -> str | None:
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed"
    if interpreted():
        return None
    if site.device != "cuda":
        return f"Triton compiles for GPUs, not for {site.device} (TRITON_INTERPRET=1 runs it slowly anywhere)"
    if row_of(site.arch) is None:
        return f"there are tile sizes for {', '.join(ARCHITECTURES)}, not for {site.arch}"
    return None


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
        return f"takes head dims up to {most} that are multiples of {multiple}, not {site.d}"

    return condition


def width(most: int) -> Condition:
    def condition(site: Site) -> str | None:
        return None if site.d <= most else f"holds a row of up to {most} numbers, not {site.d}"

    return condition


def few_keys(most: int) -> Condition:
    def condition(site: Site) -> str | None:
        return None if site.m <= most else f"takes up to {most} keys, not {site.m}"

    return condition
