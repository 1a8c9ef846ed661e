"""Adapters applied to a loaded model: a second model that shares every tensor the adapters leave alone.

    film = open_adapter("film.safetensors", spellings(model.config))
    drawn = adapted(model, [(film, LoraUse("film", 0.8))])      # `model` is as it was, to the byte

Nothing is ever added to or subtracted from loaded weights: taking an adapter off is using the model without
it. Changes of one weight add up, each computed from the original weight, in the order of the adapters'
digests: the result does not depend on the order in which they are named. The sum is made in float32
(float64 for float64 weights) and rounded once.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeVar, cast

import torch
from torch import Tensor, nn

from minisd.errors import NumericalError, PlanError
from minisd.lora_use import LoraUse
from minisd.model import Model
from minisd.models.side_path import SidePath, dense_like, low_rank_like
from minisd.weights_loader.lora_file import Adapter
from minisd.weights_loader.lora_kinds import Change
from minisd.wishes import UNCOND

Way = Literal["auto", "merged", "beside"]
Network = TypeVar("Network", bound=nn.Module)
Use = tuple[Adapter, LoraUse]
# what these give depends on the shape of the weight alone
INDEPENDENT = ("lora", "loha", "lokr", "full", "norm")


@dataclass(frozen=True)
class Term:
    """One adapter's change of one module, and what it is multiplied by."""

    multiplier: float
    change: Change


def adapted(model: Model, uses: Sequence[Use], *, way: Way = "auto") -> Model:
    """The model with adapters at work in every step; start and end of a use are not looked at (`stages`).

    way: "merged" makes changed weights anew; "beside" computes adapters next to their layers, for weights
    that cannot be changed; "auto" merges into floating point weights of 16 bits or more and goes beside the
    others. A use whose multipliers are all 0 changes no bit. Raises NumericalError when a merged weight is
    not finite, PlanError for weights that cannot be merged and were asked to, and for changes that need a
    weight which is not in memory.
    """
    uses = ordered(uses)

    def changed(network: Network, part: str) -> Network:
        return with_terms(
            network, terms_of(uses, part), part, way, torch.device(model.plan.part(part).device)
        )

    encoders = tuple(
        changed(encoder, use.part)
        for use, encoder in zip(model.config.text, model.text_encoders, strict=True)
    )
    unet = changed(model.unet, "unet")
    second = model.second
    if second is not None and second is not model.unet:
        terms, device = terms_of(uses, "unet"), torch.device(model.plan.part(UNCOND).device)
        second = with_terms(second, terms, "unet", way, device)
    elif second is not None:
        second = unet
    return replace(model, text_encoders=encoders, unet=unet, second=second)


def ordered(uses: Sequence[Use]) -> list[Use]:
    """In the order in which changes are added up: that of the digests, not that in which they were named."""
    return sorted(uses, key=lambda use: (use[0].sha256, repr(use[1])))


def terms_of(uses: Sequence[Use], part: str) -> dict[str, list[Term]]:
    """{module: its changes}, those with a multiplier of 0 left out."""
    terms: dict[str, list[Term]] = {}
    for adapter, use in uses:
        for (where, module), change in adapter.changes.items():
            if where == part and (multiplier := use.multiplier(part, module)) != 0.0:
                terms.setdefault(module, []).append(Term(multiplier, change))
    return terms


def with_terms(
    network: Network, terms: dict[str, list[Term]], part: str, way: Way, device: torch.device
) -> Network:
    """A network of new modules over the old tensors, but for the changed ones; itself without terms. device:
    where it computes, though its weights may not be there now."""
    if not terms:
        return network
    shared = {id(t): t for t in (*network.parameters(), *network.buffers())}
    twin = copy.deepcopy(network, shared)  # every tensor is in the memo: modules are copied, weights are not
    for name, changes in terms.items():
        parent, _, last = name.rpartition(".")
        owner, module = twin.get_submodule(parent), twin.get_submodule(name)
        if goes_beside(module, way, f"{part}.{name}"):
            owner.register_module(last, beside(module, changes, f"{part}.{name}", device))
        else:
            merge(module, changes, f"{part}.{name}")
    return twin


def goes_beside(module: nn.Module, way: Way, where: str) -> bool:
    """Whether the module keeps its weight. Tables and norms are small and never quantised: always merged."""
    weight = getattr(module, "weight", None)
    wide = isinstance(weight, Tensor) and weight.is_floating_point() and weight.itemsize >= 2
    wide = wide and not cast(Tensor, weight).is_meta
    if isinstance(module, nn.Embedding | nn.LayerNorm | nn.GroupNorm):
        return False
    if way == "merged" and not wide:
        raise PlanError(
            f"the weight of {where} is quantised or not in memory; an adapter can only go beside it"
        )
    return way == "beside" or (way == "auto" and not wide)


def merge(module: nn.Module, terms: Sequence[Term], where: str) -> None:
    """New weight and bias on `module`; the tensors that were there are not written to."""
    weight = cast(Tensor, module.weight)
    if weight.is_meta:
        raise away(where)
    new = total(weight, terms)
    if new is not weight:
        if not all(bool(torch.isfinite(v)) for v in torch.aminmax(new)):
            raise NumericalError(
                f"adapters make the weight of {where} infinite in {str(weight.dtype)[6:]}; lower their "
                "weights or use a wider dtype"
            )
        module.register_parameter("weight", nn.Parameter(new, requires_grad=False))
    bias = bias_of(terms, weight.dtype, weight.device)
    if bias is not None:
        old = cast(Tensor, module.bias)
        module.register_parameter("bias", nn.Parameter((old + bias).to(old.dtype), requires_grad=False))


def total(weight: Tensor, terms: Sequence[Term]) -> Tensor:
    """weight + the sum of multiplier * delta(weight), in the dtype and memory layout of `weight`; `weight`
    itself if only the bias changes."""
    changes = [t for t in terms if t.change.factors]
    if not changes:
        return weight
    wide = weight.to(torch.promote_types(weight.dtype, torch.float32))
    new = wide
    for term in changes:
        new = new + term.multiplier * term.change.dense(wide)
    last = weight.ndim == 4 and weight.is_contiguous(memory_format=torch.channels_last)
    layout = torch.channels_last if last and not weight.is_contiguous() else torch.contiguous_format
    return new.to(weight.dtype).contiguous(memory_format=layout)


def bias_of(terms: Sequence[Term], dtype: torch.dtype, device: torch.device) -> Tensor | None:
    """The sum of changes of the bias, in float32 or this dtype if it is wider."""
    dtype = torch.promote_types(dtype, torch.float32)
    found = [t.multiplier * t.change.bias.to(device, dtype) for t in terms if t.change.bias is not None]
    return None if not found else torch.stack(found).sum(0)


def away(where: str) -> PlanError:
    return PlanError(
        f"an adapter changes {where} in a way that needs its weight, which is not in memory; "
        "load with offload none"
    )


def beside(module: nn.Module, terms: Sequence[Term], where: str, device: torch.device) -> SidePath:
    """The module with its adapters as layers next to it, in the dtype that it computes in, on its device."""
    weight = dense_weight(module)
    paths: list[nn.Module] = []
    for multiplier, change in ((t.multiplier, t.change) for t in terms):
        if change.kind == "lora" and change.dora is None and change.factors:
            paths.append(low_rank(module, change, multiplier, weight, device))
        elif change.factors:
            kind = torch.promote_types(weight.dtype, torch.float32)
            if change.kind in INDEPENDENT and change.dora is None:
                wide = torch.zeros((), dtype=kind, device=device).expand(weight.shape)
            elif weight.is_meta:
                raise away(where)
            else:
                wide = weight.to(kind)
            paths.append(dense_like(module, (multiplier * change.dense(wide)).to(weight.dtype)))
    bias = bias_of(terms, weight.dtype, device)
    return SidePath(module, paths, None if bias is None else bias.to(weight.dtype))


def low_rank(
    module: nn.Module, change: Change, multiplier: float, weight: Tensor, device: torch.device
) -> nn.Module:
    """The factors of a LoRA as layers of as many axes as the weight, multiplier and scale in the last."""
    f = {k: v.to(device) for k, v in change.factors.items()}
    wide = torch.promote_types(weight.dtype, torch.float32)
    rank = f["lora_down"].shape[0]
    ones = (1,) * (weight.ndim - 2)
    up = (f["lora_up"].to(wide) * (multiplier * change.scale)).reshape(weight.shape[0], -1, *ones)
    mid = f.get("lora_mid")
    taps = weight.shape[2:] if mid is None else ones
    down = f["lora_down"].reshape(rank, weight.shape[1], *taps)
    cast_mid = None if mid is None else mid.to(weight.dtype)
    return low_rank_like(module, down.to(weight.dtype), up.to(weight.dtype), cast_mid)


def dense_weight(module: nn.Module) -> Tensor:
    """The weight of a layer in the dtype it computes in; a quantised layer says it by `dequantised()`."""
    made = getattr(module, "dequantised", None)
    return cast(Tensor, module.weight if made is None else made())


def networks_of(model: Model) -> dict[str, nn.Module]:
    """{part: network} of what adapters change."""
    encoders: dict[str, nn.Module] = {
        use.part: encoder for use, encoder in zip(model.config.text, model.text_encoders, strict=True)
    }
    return {"unet": model.unet, **encoders}


def changed(before: Model, after: Model) -> int:
    """How many parameters the second model does not share with the first."""
    count = 0
    for part, network in networks_of(after).items():
        old = {id(p) for p in networks_of(before)[part].parameters()}
        count += sum(id(p) not in old for p in network.parameters())
    return count
