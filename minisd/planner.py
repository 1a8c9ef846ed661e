"""Which plan fits: the ladder from "all weights stay" to "block by block from the file".

`choose` is a pure function of what the file's headers say, the size of the request, facts about the devices,
and what was asked for by name. It takes the first rung that fits, and says what the next one would need.
Rungs above change no bit of the picture; decoding in tiles does, so it is tried only when no rung fits
without. A CPU that has bfloat16 computes large models in it, and small ones where float32 does not fit.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import cast

import torch

from minisd.config import ModelConfig
from minisd.errors import PlanError
from minisd.memory import text_work, unet_work, vae_work
from minisd.placement import Choice, Plan, Stage, choose_device, make_plan
from minisd.plan_devices import DeviceFacts, parse_bytes
from minisd.plan_storage import Storage
from minisd.quantise.sensitive import Layers
from minisd.request import Request
from minisd.wishes import OFFLOADS, UNCOND, Residency, Wishes, group_of, named_of

RUNGS: dict[str, tuple[str, dict[str, Residency]]] = {  # offload: what it does, residency by kind of part
    "none": ("all weights stay", {"text": "resident", "unet": "resident", "vae": "resident"}),
    "staged": ("each network comes for its stage", {"text": "staged", "unet": "staged", "vae": "staged"}),
    "streamed": (
        "the UNet and the text encoders come block by block, the next one on its way",
        {"text": "streamed", "unet": "streamed", "vae": "staged"},
    ),
    "disk": (
        "everything comes block by block, nothing is kept",
        {"text": "disk", "unet": "disk", "vae": "disk"},
    ),
}
TILES = (None, 1024, 768, 512, 384, 256, 192, 128, 64)  # pixels
TOKENS = 77
SPARE = 0.95  # of the memory that is free now, where none was named
LARGE = 50_000_000  # weights of a model, from which on its products are most of what a CPU does
GENEROUS = 2**20  # bytes for each latent and image: more than any stage takes in float32


@dataclass(frozen=True)
class Sizes:
    """What of a request decides how much memory is needed. height, width in latents."""

    height: int
    width: int
    count: int
    guided: bool

    @classmethod
    def of(cls, config: ModelConfig, request: Request | None) -> Sizes:
        whole = (request or Request()).for_model(config, seed=0)
        assert whole.width is not None and whole.height is not None
        factor = config.vae.factor
        height, width = (round(n * whole.hires_scale / factor) for n in (whole.height, whole.width))
        return cls(height, width, whole.count, whole.cfg_scale != 1.0)


def choose(
    config: ModelConfig,
    elements: Mapping[str, int],
    sizes: Sizes,
    wishes: Wishes,
    devices: Mapping[str, DeviceFacts],
    *,
    stored: Mapping[str, Layers] | None = None,
    kernels: str = "auto",
    count: bool = True,
) -> Plan:
    """The fastest plan that fits.

    elements: number of weights of each part. stored: the layers that the file has in few bits. devices:
    facts by name, of all that the wishes lead to. count: predict even where there is far more room than
    needed. Raises PlanError when nothing fits, saying what would.
    """
    if wishes.offload not in OFFLOADS:
        raise PlanError(f"offload {wishes.offload!r} is not one of {', '.join(OFFLOADS)}")
    storage = Storage(config, wishes, stored or {})
    where = choose_device(wishes.of("device", "unet")).value
    facts = devices[where]
    memory = budget(wishes, facts)
    limit = memory.value
    limits = {name: limit if name == where else most(own) for name, own in devices.items()}
    wide = all(roomy(elements, sizes, own, wishes, limits[name]) for name, own in devices.items())
    ladder = candidates(elements, sizes, wishes, facts, kernels, storage)
    if wishes.offload in ("auto", "none") and not count and wide:
        return replace(next(ladder), memory=memory)
    tried: list[Plan] = []
    fitting: Plan | None = None
    for candidate in ladder:
        stages = predicted(candidate, config, sizes, devices)
        plan = replace(candidate, memory=memory, stages=stages)
        if fitting is not None:
            if plan.peak >= fitting.peak:
                break
            below = f"{plan.rung.reason}, in {str(plan.part('unet').dtype.value)[6:]}"
            reason = f"{fitting.rung.reason}; next on the ladder: {below}, with {plan.peak / 1e9:.2f} GB"
            return replace(fitting, rung=Choice(fitting.rung.value, reason))
        tried.append(plan)
        if not short(plan, limits):
            fitting = plan
            if wishes.offload != "auto":
                break
    if fitting is not None:
        return fitting
    least = min(tried, key=lambda p: p.peak)
    stage = max(short(least, limits), key=lambda s: s.peak)
    there = "there are" if len(devices) == 1 else f"{stage.device} has"
    asked = f"offload {wishes.offload}" if wishes.offload != "auto" else "every way of keeping weights"
    raise PlanError(
        f"{asked} needs more than the {(limits[stage.device] or 0) / 1e9:.2f} GB {there}: at least "
        f"{stage.peak / 1e9:.2f} GB, with {least.rung.reason} and VAE tiles of "
        f"{least.vae_tile.value or 'any size'}; allow that much, ask for a smaller picture, or for a smaller "
        "dtype"
    )


def next_rung(plan: Plan) -> str | None:
    """The offload below a plan's on the ladder; None at its foot."""
    names = list(RUNGS)
    at = names.index(plan.rung.value)
    return names[at + 1] if at + 1 < len(names) else None


def budget(wishes: Wishes, facts: DeviceFacts) -> Choice[int | None]:
    if wishes.memory is not None:
        return Choice(parse_bytes(wishes.memory), "asked for by name")
    if facts.free is None:
        return Choice(None, f"nobody says how much {facts.name} has")
    return Choice(most(facts), f"free on {facts.name} now, with a little to spare")


def roomy(
    elements: Mapping[str, int], sizes: Sizes, facts: DeviceFacts, wishes: Wishes, limit: int | None
) -> bool:
    """Whether everything fits several times over, so that nothing need be counted."""
    if wishes.memory is not None or limit is None:
        return limit is None
    together = sizes.count * 2
    work = sizes.height * sizes.width * GENEROUS * together
    return facts.base + sum(elements.values()) * 8 + work < limit // 2


def candidates(
    elements: Mapping[str, int],
    sizes: Sizes,
    wishes: Wishes,
    facts: DeviceFacts,
    kernels: str,
    storage: Storage,
) -> Iterator[Plan]:
    """Plans in the order in which they are tried: exact ones first, from the fastest down."""
    forced = wishes.offload != "auto"
    names = [wishes.offload] if forced else list(RUNGS)
    if not forced and movers_refuse(wishes, kernels):
        names = ["none"]
    dtypes = dtypes_of(elements, wishes, facts)
    tiles = [t for t in TILES if t is None or t < 8 * max(sizes.height, sizes.width)]
    for tile in tiles if wishes.vae_tile is None else [wishes.vae_tile]:
        for number, (dtype, why) in enumerate(dtypes):
            exact_only = not forced and number == 0 and len(dtypes) > 1
            for name in names[:1] if exact_only else names:
                named = replace(wishes, dtype=dtype, vae_tile=tile)
                plan = because(why, planned(elements, named, name, kernels, storage), wishes)
                if tile is not None and wishes.vae_tile is None:
                    plan = replace(plan, vae_tile=Choice(tile, "decoding whole does not fit"))
                yield plan
                if wishes.cfg == "auto" and plan.batching.value.prompts and sizes.guided:
                    apart = replace(plan.batching.value, prompts=False)
                    yield replace(plan, batching=Choice(apart, "both predictions at once do not fit"))


def movers_refuse(wishes: Wishes, kernels: str) -> bool:
    """Whether an implementation was named that keeps what it made of the weights."""
    chosen = make_plan({}, kernels=kernels, device=wishes.device).kernels.value
    keep = chosen.packed, chosen.fused_qkv, chosen.graph, chosen.compiled
    return any(keep) or chosen.upsample_conv != "nearest"


def dtypes_of(elements: Mapping[str, int], wishes: Wishes, facts: DeviceFacts) -> list[tuple[str, str]]:
    """What may be computed in, best first, each with its reason; "" where a part's own choice has one."""
    if facts.kind != "cpu" or wishes.dtype != "auto" or not facts.bf16:
        return [(wishes.dtype, "")]
    if sum(elements.values()) >= LARGE:
        return [("bfloat16", f"{facts.why_bf16}: 1.7 times as fast as float32, in half the memory")]
    return [("auto", ""), ("bfloat16", f"float32 does not fit in memory; {facts.why_bf16}")]


def because(why: str, plan: Plan, wishes: Wishes) -> Plan:
    """The reason for a dtype belongs to the plan, not to the person, who named none."""
    parts = tuple(
        replace(p, dtype=Choice(p.dtype.value, why)) if why and wishes.of("dtype", p.part) == "auto" else p
        for p in plan.parts
    )
    return replace(plan, parts=parts)


def planned(
    elements: Mapping[str, int], wishes: Wishes, offload: str, kernels: str, storage: Storage
) -> Plan:
    """A plan on this rung, nothing predicted."""
    name = "none" if offload == "auto" else offload
    if name != "none" and movers_refuse(wishes, kernels):
        raise PlanError(
            f"offload {name}: packed, fused_qkv, graph, compiled and folded upsampling keep what they make "
            "of the weights, which would not stay; leave them out or use offload none"
        )
    plan = storage.put(make_plan(elements, kernels=kernels, **named_of(wishes)))
    what, residency = RUNGS[name]
    why = "asked for by name" if wishes.offload == name else what
    parts = tuple(
        replace(p, residency=Choice(cast(Residency, residency[group_of(p.part)]), why)) for p in plan.parts
    )
    return replace(plan, parts=parts, rung=Choice(name, what))


def most(facts: DeviceFacts) -> int | None:
    """Bytes that may be taken on a device for which none were named."""
    return None if facts.free is None else int(facts.free * SPARE)


def short(plan: Plan, limits: Mapping[str, int | None]) -> list[Stage]:
    """The stages that take more than their device has."""
    return [s for s in plan.stages if (limit := limits[s.device]) is not None and s.peak > limit]


def predicted(
    plan: Plan, config: ModelConfig, sizes: Sizes, devices: Mapping[str, DeviceFacts]
) -> tuple[Stage, ...]:
    """The most that each stage holds on its device. Where freed memory is kept, what earlier stages took is
    part of the program's own."""
    stages = []
    kept = dict.fromkeys(devices, 0)
    for name, group in (("encode", "text"), ("sample", "unet"), ("decode", "vae")):
        for device in dict.fromkeys(p.device for p in plan.parts if group_of(p.part) == group):
            facts = devices[device]
            here = [p for p in plan.parts if p.device == device]
            stay = sum(p.weight_bytes for p in here if p.residency.value == "resident")
            stage = sum(
                p.weight_bytes for p in here if p.residency.value == "staged" and group_of(p.part) == group
            )
            work = stage_work(plan, config, sizes, group, facts)
            stages.append(Stage(name, device, stay + stage, work, facts.base + kept[device]))
            kept[device] += stage + work if facts.keeps else 0
    return tuple(stages)


def stage_work(plan: Plan, config: ModelConfig, sizes: Sizes, group: str, facts: DeviceFacts) -> int:
    attention = plan.attention.value
    if group == "text":
        return max((text_work(use.config, *kept_as(plan, use.part)) for use in config.text), default=0)
    if group == "unet":
        dtype, flow, layers = kept_as(plan, "unet")
        together = plan.batching.value
        batch = (sizes.count if together.images else 1) * (2 if together.prompts and sizes.guided else 1)
        c = config.unet
        work = unet_work(
            *(c, sizes.height, sizes.width, batch, TOKENS, dtype, attention, facts.reorders, flow, layers)
        )
        latents = sizes.count * c.out_channels * sizes.height * sizes.width * 4
        # both halves of guidance at the same time on one device
        beside = plan.cfg_device.value is not None and all(p.part != UNCOND for p in plan.parts)
        return work * (2 if beside and sizes.guided else 1) + 4 * latents  # the solver's own
    dtype, flow, layers = kept_as(plan, "vae")
    tile = plan.vae_tile.value
    cells = None if tile is None else tile // config.vae.factor
    work = config.vae, sizes.height, sizes.width, cells, dtype, attention, facts.reorders, flow, layers
    return vae_work(*work)


def kept_as(plan: Plan, part: str) -> tuple[torch.dtype, Residency, Layers]:
    """What a part computes in, how its working memory is counted (staged weights are counted whole), and its
    layers in few bits."""
    own = plan.part(part)
    flow = own.residency.value
    return own.dtype.value, "resident" if flow == "staged" else flow, own.layers
