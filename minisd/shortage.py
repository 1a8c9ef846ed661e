"""When memory runs out in spite of the plan: the same model once more, one rung down `planner.RUNGS`.

The error is caught outside the frames that failed, so that what they held is free before anything is loaded.
A rung only moves weights, so the picture is the one that was asked for; the plan and the receipt tell of it.
"""

from __future__ import annotations

import gc
import re
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from minisd.errors import PlanError
from minisd.placement import Choice, PartPlan, Plan
from minisd.planner import RUNGS, next_rung
from minisd.wishes import Named, group_of

if TYPE_CHECKING:
    from minisd.model import Model

HOST = ("DefaultCPUAllocator", "not enough memory")  # how torch says it of the host's memory
ADVICE = "ask for a smaller picture, for another offload, for a smaller dtype or for vae_tile"
TRIED = re.compile(r"[Tt]ried to allocate ([0-9.]+ ?[A-Za-z]+)")


def shortage(error: BaseException) -> str | None:
    """What an error says of memory that ran out: "no memory for 2.00 GiB more"; None for any other error."""
    host = isinstance(error, RuntimeError) and any(words in str(error) for words in HOST)
    if not host and not isinstance(error, torch.OutOfMemoryError | MemoryError):
        return None
    found = TRIED.search(str(error))
    return "no memory left" if found is None else f"no memory for {found[1]} more"


def forget(device: str) -> None:
    """Hand memory that torch keeps for later back to the device."""
    kind = torch.device(device).type
    if kind == "cuda":
        torch.cuda.empty_cache()
    elif kind == "xpu":
        torch.xpu.empty_cache()
    elif kind == "mps":
        torch.mps.empty_cache()


def ran_out(plan: Plan, said: str) -> PlanError:
    """The error where nothing more can be tried."""
    return PlanError(f"{told_of(plan, said)}; {ADVICE}")


def told_of(plan: Plan, said: str) -> str:
    name = plan.rung.value
    return f"{said} where {RUNGS[name][0] if name in RUNGS else 'all weights stay'}"


def lowered(again: Callable[[Named], Model], plan: Plan, said: str) -> Model:
    """The model of a plan one rung down; the old one has been given back. again: loads it with these wishes
    named. Raises PlanError where there is no lower rung, or not with this plan."""
    rung = next_rung(plan)
    if rung is None:
        raise ran_out(plan, said)
    gc.collect()
    for device in {p.device for p in plan.parts}:
        forget(device)
    dtypes = {group_of(p.part): str(p.dtype.value)[6:] for p in plan.parts}
    model = again(
        Named(
            offload=rung,
            unet_dtype=dtypes.get("unet", "auto"),
            text_dtype=dtypes.get("text", "auto"),
            vae_dtype=dtypes.get("vae", "auto"),
            cfg="together" if plan.batching.value.prompts else "apart",
            vae_tile=plan.vae_tile.value,
        )
    )
    return replace(model, plan=told(model.plan, plan, said))


def told(now: Plan, then: Plan, said: str) -> Plan:
    """The lower plan with the reasons of the higher one where nothing changed, and that of the change."""
    why = told_of(then, said)

    def part(own: PartPlan) -> PartPlan:
        before = then.part(own.part).dtype
        own = replace(own, residency=Choice(own.residency.value, why))
        return replace(own, dtype=before) if own.dtype.value == before.value else own

    return replace(
        now,
        parts=tuple(part(p) for p in now.parts),
        batching=then.batching if now.batching.value == then.batching.value else now.batching,
        vae_tile=then.vae_tile if now.vae_tile.value == then.vae_tile.value else now.vae_tile,
        rung=Choice(now.rung.value, f"{RUNGS[now.rung.value][0]}; {why}"),
        shortage=why,
    )
