"""Plan: where each part of a model lives, in which precision, and why. Decided before a weight is read.

`plan` is a pure function of what the checkpoint holds, what the machine is and what was asked for by name.
What is asked for by name happens or raises PlanError; only an automatic choice may depend on the machine, and
each carries its reason. `print(plan)` is a table for people. Nothing global is set: no default dtype, no TF32
flag.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch

from minisd.denoiser import Batching
from minisd.errors import PlanError
from minisd.kernels import Kernels, why_not

T = TypeVar("T")

DTYPES: dict[str, torch.dtype] = {
    "float32": torch.float32,
    "fp32": torch.float32,
    "bfloat16": torch.bfloat16,
    "bf16": torch.bfloat16,
    "float16": torch.float16,
    "fp16": torch.float16,
    "float64": torch.float64,
}


@dataclass(frozen=True)
class Choice(Generic[T]):
    """A decision and why it fell so."""

    value: T
    reason: str


@dataclass(frozen=True)
class PartPlan:
    """One part of the model: its device and dtype, and the bytes of its weights there."""

    part: str
    device: str
    dtype: Choice[torch.dtype]
    weight_bytes: int


@dataclass(frozen=True)
class Plan:
    device: Choice[str]
    parts: tuple[PartPlan, ...]
    attention: Choice[str]
    kernels: Choice[Kernels]
    batching: Choice[Batching]
    channels_last: Choice[tuple[str, ...]]  # parts
    vae_tile: Choice[int | None]  # pixels

    def part(self, name: str) -> PartPlan:
        return next(p for p in self.parts if p.part == name)

    def __str__(self) -> str:
        rows = [f"{'part':<16}{'device':<8}{'dtype':<10}{'weights':>12}  why"]
        for p in self.parts:
            dtype = str(p.dtype.value).removeprefix("torch.")
            rows.append(
                f"{p.part:<16}{p.device:<8}{dtype:<10}{p.weight_bytes / 1e6:>9,.1f} MB  {p.dtype.reason}"
            )
        batching = [n for n in ("images", "prompts") if getattr(self.batching.value, n)]
        rows += [
            f"device          {self.device.value}: {self.device.reason}",
            f"attention       {self.attention.value}: {self.attention.reason}",
            f"kernels         {self.kernels.value}: {self.kernels.reason}",
            f"batched         {' and '.join(batching) or 'nothing'}: {self.batching.reason}",
            f"channels last   {', '.join(self.channels_last.value) or 'no'}: {self.channels_last.reason}",
            f"VAE tiles       {self.vae_tile.value or 'none'}: {self.vae_tile.reason}",
        ]
        return "\n".join(rows)


def make_plan(
    elements: Mapping[str, int],
    *,
    device: str = "auto",
    dtype: str = "auto",
    vae_dtype: str = "auto",
    attention: str = "auto",
    kernels: str = "auto",
    vae_tile: int | None = None,
) -> Plan:
    """The plan for a model whose parts have these numbers of weights. Raises PlanError for what cannot be
    done."""
    place = choose_device(device)
    compute = choose_dtype(dtype, place.value)
    vae_compute = choose_vae_dtype(vae_dtype, dtype, compute)
    on_cpu = torch.device(place.value).type == "cpu"
    if attention == "auto":
        kernel = Choice("sdpa", "torch's fused kernel")
    else:
        reason = why_not(attention)
        if reason is not None:
            raise PlanError(reason)
        kernel = Choice(attention, "asked for by name")
    chosen_kernels = choose_kernels(kernels, attention, place.value)
    if vae_tile is not None and (vae_tile < 64 or vae_tile % 8):
        raise PlanError(f"vae_tile {vae_tile} must be a multiple of 8 and at least 64 pixels")
    parts = []
    for part, count in elements.items():
        chosen = vae_compute if part in ("vae", "taesd") else compute
        parts.append(PartPlan(part, place.value, chosen, count * chosen.value.itemsize))
    return Plan(
        device=place,
        parts=tuple(parts),
        attention=kernel,
        kernels=chosen_kernels,
        batching=Choice(
            Batching(images=False, prompts=False), "CPU: no faster together, and bits stay per image"
        )
        if on_cpu
        else Choice(Batching(images=True, prompts=True), "one call keeps the device busy"),
        channels_last=Choice((), "CPU: GroupNorm's sums over channels last depend on the number of threads")
        if on_cpu
        else Choice(("unet", "vae", "taesd"), "convolutions read the channels of a pixel together"),
        vae_tile=Choice(vae_tile, "asked for by name" if vae_tile else "decoded whole"),
    )


def choose_kernels(names: str, attention: str, device: str) -> Choice[Kernels]:
    """What every operation runs: `Kernels.parse(names)`, and `attention` for every attention."""
    try:
        chosen = Kernels.parse(names)
        if attention != "auto":
            chosen = chosen.with_attention(attention)
    except ValueError as error:
        raise PlanError(str(error)) from error
    reason = chosen.why_not(torch.device(device).type)
    if reason is not None:
        raise PlanError(reason)
    asked = names != "auto" or attention != "auto"
    return Choice(chosen, "asked for by name" if asked else "nothing else has been timed on this machine")


def choose_device(name: str) -> Choice[str]:
    if name != "auto":
        try:
            device = torch.device(name)
        except RuntimeError as error:
            raise PlanError(
                f"device {name!r} is not one torch knows; try cpu, cuda, cuda:1, mps, xpu"
            ) from error
        if device.type not in ("cpu", "meta"):
            found = torch.accelerator.current_accelerator(check_available=True)
            if found is None or found.type != device.type:
                raise PlanError(
                    f"device {name!r} was asked for, but torch finds {found or 'no accelerator'} here"
                )
            if device.index is not None and device.index >= torch.accelerator.device_count():
                count = torch.accelerator.device_count()
                raise PlanError(f"device {name!r} was asked for, but there are {count} of its kind")
        return Choice(name, "asked for by name")
    found = torch.accelerator.current_accelerator(check_available=True)
    if found is None:
        return Choice("cpu", "torch finds no accelerator")
    return Choice(found.type, "the accelerator that torch finds")


def choose_dtype(name: str, device: str) -> Choice[torch.dtype]:
    if name != "auto":
        if name not in DTYPES:
            raise PlanError(f"dtype {name!r} is not one of {', '.join(DTYPES)}")
        if DTYPES[name] == torch.float16 and torch.device(device).type == "cpu":
            raise PlanError("float16 computes 9 times slower than bfloat16 on a CPU; use bfloat16 or float32")
        return Choice(DTYPES[name], "asked for by name")
    kind = torch.device(device).type
    if kind == "cpu":
        return Choice(torch.float32, "CPU: exact to the bit, whatever the batch and the number of threads")
    if kind == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        return Choice(torch.float16, "this GPU has no bfloat16")
    return Choice(torch.bfloat16, "half the memory of float32, no overflow")


def choose_vae_dtype(name: str, dtype: str, compute: Choice[torch.dtype]) -> Choice[torch.dtype]:
    if name != "auto":
        if name not in DTYPES:
            raise PlanError(f"vae dtype {name!r} is not one of {', '.join(DTYPES)}")
        return Choice(DTYPES[name], "asked for by name")
    if compute.value == torch.float16:
        return Choice(torch.float32, "activations of SDXL's VAE overflow float16")
    return compute
