"""Plan: where each part of a model lives, in which precision, and why. Decided before a weight is read.

`plan` is a pure function of what the checkpoint holds, what the machine is and what was asked for by name.
What is asked for by name happens or raises PlanError; only an automatic choice may depend on the machine, and
each carries its reason. `print(plan)` is a table for people. Nothing global is set: no default dtype, no TF32
flag.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Generic, TypeVar, Unpack

import torch

from minisd.denoiser import Batching
from minisd.errors import PlanError
from minisd.kernels import REGISTRY, Kernels, why_not
from minisd.kernels.registry import Site
from minisd.plan_text import as_data, as_text
from minisd.quantise.sensitive import Layers
from minisd.wishes import CALLS, UNCOND, Named, Residency, Wishes, group_of

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
    """One part of the model: its device and dtype, the bytes of its weights there, and whether they stay.
    quant: the scheme by which weights are stored; layers: those it concerns, (module, scheme)."""

    part: str
    device: str
    dtype: Choice[torch.dtype]
    weight_bytes: int
    residency: Choice[Residency] = Choice("resident", "there is room")
    quant: Choice[str] = Choice("none", "as wide as they are computed in")
    layers: Layers = ()


@dataclass(frozen=True)
class Stage:
    """The most bytes that one stage of a drawing holds on one device, and of what."""

    stage: str  # "encode", "sample", "decode"
    device: str
    weights: int  # those that stay, and those of the stage
    work: int  # what the networks compute with; streamed pieces are counted here
    base: int  # the program itself, where it shares the device's memory

    @property
    def peak(self) -> int:
        return self.weights + self.work + self.base


@dataclass(frozen=True)
class Plan:
    device: Choice[str]
    parts: tuple[PartPlan, ...]
    attention: Choice[str]
    kernels: Choice[Kernels]
    batching: Choice[Batching]
    channels_last: Choice[tuple[str, ...]]  # parts
    vae_tile: Choice[int | None]  # pixels
    memory: Choice[int | None] = Choice(None, "not limited")  # bytes on the UNet's device
    stages: tuple[Stage, ...] = ()  # predicted; empty where there is far more room than needed
    rung: Choice[str] = Choice("resident", "there is room")
    # of the unconditional prediction of guidance, made at the same time; None: the UNet's
    cfg_device: Choice[str | None] = Choice(None, "one after the other, or in one call")
    shortage: str | None = None  # the lack of memory on the rung above that led to this one (`shortage.py`)

    @property
    def peak(self) -> int:
        """Predicted bytes of the largest stage, 0 where nothing was counted."""
        return max((s.peak for s in self.stages), default=0)

    def part(self, name: str) -> PartPlan:
        return next(p for p in self.parts if p.part == name)

    def __str__(self) -> str:
        return as_text(self)

    def to_dict(self) -> dict[str, object]:
        """Plain data for JSON."""
        return as_data(self)


def make_plan(elements: Mapping[str, int], *, kernels: str = "auto", **named: Unpack[Named]) -> Plan:
    """The plan for a model whose parts have these numbers of weights, all of which stay; `planner.choose`
    weighs memory. Raises PlanError for what cannot be done."""
    wishes = Wishes(**named)
    place = choose_device(wishes.device)
    parts = []
    for part, count in elements.items():
        own = wishes.of("device", part)
        where = place.value if own == wishes.device else choose_device(own).value
        dtype = part_dtype(wishes, part, where)
        parts.append(PartPlan(part, where, dtype, count * dtype.value.itemsize))
    unet = next((p.device for p in parts if p.part == "unet"), place.value)
    on_cpu = torch.device(unet).type == "cpu"
    if wishes.attention == "auto":
        kernel = Choice("sdpa", "torch's fused kernel")
    else:
        reason = why_not(wishes.attention)
        if reason is not None:
            raise PlanError(reason)
        kernel = Choice(wishes.attention, "asked for by name")
    tile = wishes.vae_tile
    if tile is not None and (tile < 64 or tile % 8):
        raise PlanError(f"vae_tile {tile} must be a multiple of 8 and at least 64 pixels")
    if wishes.cfg not in CALLS:
        raise PlanError(f"cfg {wishes.cfg!r} is not one of {', '.join(CALLS)}")
    if on_cpu:
        batching = Choice(Batching(False, False), "CPU: no faster together, and bits stay per image")
    else:
        batching = Choice(Batching(True, True), "one call keeps the device busy")
    if wishes.cfg != "auto":
        prompts = wishes.cfg == "together"
        batching = Choice(
            replace(batching.value, prompts=prompts), f"prompts {wishes.cfg}: asked for by name"
        )
    halves = choose_halves(wishes, next((p for p in parts if p.part == "unet"), None))
    if halves is not None:
        batching = Choice(replace(batching.value, prompts=False), "predictions on two devices")
        parts += [halves] if halves.device != unet else []
    chosen = choose_kernels(kernels, wishes.attention, unet, *(p.device for p in parts))
    for own in parts:
        reason = rough_refused(chosen.value, own)
        if reason is not None:
            raise PlanError(f"{own.part}: {reason}")
    if halves is not None and chosen.value.graph:
        raise PlanError(
            "graph records what one thread launches, and cfg_device has two at work; leave one of them out"
        )
    # on a CPU torch's own GroupNorm over channels last sums in an order that depends on the number of threads
    any_order = chosen.value.group_norm_silu == "avx512"
    last = tuple(
        p.part
        for p in parts
        if group_of(p.part) != "text" and (any_order or torch.device(p.device).type != "cpu")
    )
    return Plan(
        device=place,
        parts=tuple(parts),
        attention=kernel,
        kernels=chosen,
        batching=batching,
        channels_last=Choice(last, "convolutions read the channels of a pixel together")
        if last
        else Choice((), "CPU: GroupNorm's sums over channels last depend on the number of threads"),
        vae_tile=Choice(tile, "asked for by name" if tile else "decoded whole"),
        cfg_device=Choice(None, "one after the other, or in one call")
        if halves is None
        else Choice(halves.device, "asked for by name: the unconditional prediction, at the same time"),
    )


def choose_halves(wishes: Wishes, unet: PartPlan | None) -> PartPlan | None:
    """The UNet once more for the unconditional prediction, if it is to have a device of its own; on the same
    device as the first it is no part of the plan: they share their weights."""
    if wishes.cfg_device == "auto" or unet is None:
        return None
    if wishes.cfg == "together":
        raise PlanError(
            "cfg together makes both predictions in one call, and cfg_device makes them on two devices; "
            "leave one of them out"
        )
    device = choose_device(wishes.cfg_device).value
    if same_device(device, unet.device):
        return unet
    choose_dtype(str(unet.dtype.value).removeprefix("torch."), device)  # of both; it may refuse
    return replace(unet, part=UNCOND, device=device)


def same_device(a: str, b: str) -> bool:
    """Whether two names are of one device; that without a number is the first."""
    one, other = torch.device(a), torch.device(b)
    return (one.type, one.index or 0) == (other.type, other.index or 0)


def part_dtype(wishes: Wishes, part: str, device: str) -> Choice[torch.dtype]:
    """What a part computes in."""
    compute = choose_dtype(wishes.of("dtype", part), device)
    if group_of(part) != "vae" or wishes.vae_dtype != "auto":
        return compute
    if compute.value == torch.float16:
        return Choice(torch.float32, "activations of SDXL's VAE overflow float16")
    return compute


def choose_kernels(names: str, attention: str, device: str, *others: str) -> Choice[Kernels]:
    """What every operation runs: `Kernels.parse(names)`, and `attention` for every attention. device: the
    UNet's; others: those of all parts, which run the same operations."""
    try:
        chosen = Kernels.parse(names)
        if attention != "auto":
            chosen = chosen.with_attention(attention)
    except ValueError as error:
        raise PlanError(str(error)) from error
    kind = torch.device(device).type
    reason = chosen.why_not(kind)
    if reason is not None:
        raise PlanError(reason)
    operations = replace(chosen, graph=False, compiled=False)  # these two concern the UNet alone
    for other in {torch.device(name).type for name in others} - {kind}:
        if (reason := operations.why_not(other)) is not None:
            raise PlanError(f"a part of the model is on {other}: {reason}")
    asked = names != "auto" or attention != "auto"
    reason = "asked for by name" if asked else "nothing else has been timed on this machine"
    rough = f"; approximate: {', '.join(chosen.approximate)}" if chosen.approximate else ""
    return Choice(chosen, reason + rough)


def rough_refused(kernels: Kernels, own: PartPlan) -> str | None:
    """Why an approximate attention cannot compute in a part's precision, or None. What is as exact as the
    precision takes any."""
    op = "wide_attention" if group_of(own.part) == "vae" else "self_attention"
    one = REGISTRY.find(op, getattr(kernels, op))
    if one.approximate is None or group_of(own.part) == "text" or own.part == "taesd":
        return None
    return one.why_not(Site(op, own.dtype.value, torch.device(own.device).type))


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
