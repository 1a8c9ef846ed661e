"""Several adapters in one LoRA: exactly, by putting their factors side by side, or cut to a rank.

    up = [m1 s1 up1, m2 s2 up2, ...]     down = [down1; down2; ...]     s: alpha / rank, m: the weight

The product is the sum of the products. Kinds whose change does not depend on the model's weights (LoHa, LoKr,
whole differences) have no such factors: they need a rank. DoRA, IA3, OFT and GLoRA depend on the weights and
are refused: bake them into a model (`minisd convert --lora`), and extract the difference.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from minisd.adapters import INDEPENDENT, Term, Use, bias_of, ordered, terms_of
from minisd.config import ModelConfig
from minisd.errors import CheckpointError, RequestError, listed, quoted
from minisd.lora_use import LoraUse
from minisd.lora_writing import (
    checked_dtype,
    checked_rank,
    checked_target,
    energy,
    fitting,
    kept_part,
    lora_factors,
    truncated,
    write_adapter,
)
from minisd.weights_loader.checkpoint import open_checkpoint
from minisd.weights_loader.lora_file import BUNDLED, match, read_adapter
from minisd.weights_loader.lora_names import Target, kohya_names, spellings
from minisd.weights_loader.open import open_source
from minisd.weights_loader.source import TensorSource


@dataclass(frozen=True)
class Joined:
    """What was written. kept: share of the energy, 1 where nothing was cut."""

    path: Path
    modules: int
    ranks: tuple[int, int]  # smallest and largest
    kept: float


def join(
    uses: Sequence[LoraUse | str],
    target: str | os.PathLike[str],
    *,
    model: str | os.PathLike[str] | None = None,
    rank: int | None = None,
    dtype: str | None = None,
) -> Joined:
    """Write the sum of adapters to `target`, which must not exist, under kohya's names.

    uses: the name of each is a path; weights for encoders and blocks count. model: that they are for (None:
    the published family that all fit). rank: of the result at most; None keeps all. dtype: float32, float16,
    bfloat16; None: the widest of the inputs. Raises CheckpointError, RequestError.
    """
    asked = [LoraUse.of(use) for use in uses]
    if not asked:
        raise RequestError("there is no adapter to merge", field="loras")
    if partial := [use.name for use in asked if not use.whole]:
        raise RequestError(f"{listed(partial)} act in a part of the steps; a file acts in all", field="loras")
    if rank is not None:
        checked_rank("rank", rank)
    path = checked_target(target, [use.name for use in asked])
    with ExitStack() as files:
        sources = [open_source(use.name) for use in asked]
        for source in sources:
            files.callback(source.close)
        config = common_config(sources, model)
        names = spellings(config)
        found: list[Use] = [(read_adapter(s, names), use) for s, use in zip(sources, asked, strict=True)]
        check_kinds(found)
        kind = widest(found) if dtype is None else checked_dtype(dtype)
        modules, sums = {}, [0.0, 0.0]
        terms = {part: terms_of(ordered(found), part) for part in ("unet", "text_encoder", "text_encoder_2")}
        for place, name in kohya_names(config).items():
            if acting := terms[place.part].get(place.module):
                modules[name] = summed(place, acting, rank, kind, sums)
        words = bundled(sources)
        recipe = [{**use.to_dict(), "name": a.name, "sha256": a.sha256} for a, use in found]
        more = {"minisd.merge": json.dumps({"loras": recipe, "rank": rank}, sort_keys=True)}
        write_adapter(path, {**modules, **words}, config, more)
    ranks = [f["lora_down.weight"].shape[0] for f in modules.values() if "lora_down.weight" in f] or [0]
    return Joined(path, len(modules), (min(ranks), max(ranks)), kept_part(*sums))


def common_config(sources: Sequence[TensorSource], model: str | os.PathLike[str] | None) -> ModelConfig:
    if model is not None:
        with open_checkpoint(model) as checkpoint:
            if checkpoint.config is None:
                raise CheckpointError(
                    f"{quoted(checkpoint.name)} is {checkpoint.detection.summary}, no model"
                )
            config = checkpoint.config
        for source in sources:
            match(source, spellings(config))
        return config
    fits = [fitting(source) for source in sources]
    shared = [c for c in fits[0] if all(c in other for other in fits)]
    if shared:
        return shared[0]
    told = [
        f"{quoted(s.path.name)} fits {', '.join(c.family for c in f) or 'no published family'}"
        for s, f in zip(sources, fits, strict=True)
    ]
    raise CheckpointError(f"these adapters are not of one family: {'; '.join(told)}; --model names another")


def check_kinds(uses: Sequence[Use]) -> None:
    for adapter, _ in uses:
        bound = {
            c.kind if c.dora is None else f"{c.kind} with DoRA"
            for c in adapter.changes.values()
            if c.factors and (c.kind not in INDEPENDENT or c.dora is not None)
        }
        if bound:
            raise CheckpointError(
                f"{quoted(adapter.name)} is {listed(sorted(bound))}, which depends on the model's weights; "
                "bake it into a model and extract the difference"
            )


def widest(uses: Sequence[Use]) -> torch.dtype:
    kind = torch.float16
    kinds = {f.dtype for a, _ in uses for c in a.changes.values() for f in c.factors.values()}
    if len(kinds) == 1:
        return kinds.pop()
    for other in kinds:
        kind = torch.promote_types(kind, other)
    return kind


def summed(
    target: Target, terms: Sequence[Term], rank: int | None, dtype: torch.dtype, sums: list[float]
) -> dict[str, Tensor]:
    """The factors of the sum. sums: of squares, of the whole and of what is lost, where there is a
    rank."""
    out: dict[str, Tensor] = {}
    if (bias := bias_of(terms, torch.float64, torch.device("cpu"))) is not None:
        out["b_norm" if len(target.shape) == 1 else "diff_b"] = bias.to(dtype)
    acting = [t for t in terms if t.change.factors]
    if not acting:
        return out
    if len(target.shape) == 1:
        return {**out, "w_norm": dense(target, acting).to(dtype)}
    if all(t.change.kind == "lora" for t in acting):
        pairs = [pair(t, target) for t in acting]
        up, down = torch.cat([u for u, _ in pairs], 1), torch.cat([d for _, d in pairs], 0)
        if rank is not None and up.shape[1] > rank:
            up, down, whole, lost = cut(up, down, rank)
            sums[0] += whole
            sums[1] += lost
        elif rank is not None:
            sums[0] += energy(up, down)
        return {**out, **lora_factors(up, down, target.shape, dtype)}
    if rank is None:
        if all(t.change.kind == "full" for t in acting):
            return {**out, "diff": dense(target, acting).to(dtype)}
        kinds = listed(sorted({t.change.kind for t in acting}))
        raise RequestError(
            f"{target} is changed by {kinds}, which have no factors to put side by side; give a rank"
        )
    up, down, whole, lost = truncated(dense(target, acting).reshape(target.shape[0], -1), rank)
    sums[0] += whole
    sums[1] += lost
    return {**out, **lora_factors(up, down, target.shape, dtype)}


def pair(term: Term, target: Target) -> tuple[Tensor, Tensor]:
    """up [o, r] with weight and scale in it, down [r, n] with the core of the Tucker form in it; float64."""
    f = {k: v.to(torch.float64) for k, v in term.change.factors.items()}
    up, down = f["lora_up"].flatten(1), f["lora_down"].flatten(1)
    if "lora_mid" in f:
        down = torch.einsum("mnkl,ni->mikl", f["lora_mid"], down).flatten(1)
    return up * (term.multiplier * term.change.scale), down


def cut(up: Tensor, down: Tensor, rank: int) -> tuple[Tensor, Tensor, float, float]:
    """The best approximation of up @ down with a smaller rank, without the product: both are orthogonalised,
    and what lies between them is small."""
    left, a = torch.linalg.qr(up)
    right, b = torch.linalg.qr(down.t())
    u, s, v = torch.linalg.svd(a @ b.t())
    size = s[:rank].sqrt()
    whole, lost = float(s.square().sum()), float(s[rank:].square().sum())
    return left @ u[:, :rank] * size, size[:, None] * (v[:rank] @ right.t()), whole, lost


def dense(target: Target, terms: Sequence[Term]) -> Tensor:
    """The sum of the changes, float64."""
    zero = torch.zeros((), dtype=torch.float64).expand(target.shape)
    return torch.stack([t.multiplier * t.change.dense(zero) for t in terms]).sum(0)


def bundled(sources: Sequence[TensorSource]) -> dict[str, dict[str, Tensor]]:
    """Tensors of the words that came with the adapters, as (what stands before the last dot): {the rest}."""
    out: dict[str, dict[str, Tensor]] = {}
    for source in sources:
        mine = {n for n in source.tensors if n.startswith(BUNDLED)}
        words = {n[len(BUNDLED) :].split(".")[0] for n in mine}
        taken = {k[len(BUNDLED) :].split(".")[0] for k in out}
        if twice := sorted(words & taken):
            raise CheckpointError(f"two of the adapters bring the words {listed(twice)}; rename one")
        for name in mine:
            head, _, tail = name.rpartition(".")
            out.setdefault(head, {})[tail] = source.read(name)
    return out
