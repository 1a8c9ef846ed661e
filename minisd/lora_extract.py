"""The difference of two models as a LoRA: the best approximation of each layer's change with a given rank.

Layer by layer: two layers and their factors are held, and what was written so far. Reported is the energy
kept: the share of the sum of squares of all changes that the LoRA gives back.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from minisd.errors import CheckpointError, quoted
from minisd.hashes import file_sha256
from minisd.lora_writing import (
    checked_dtype,
    checked_rank,
    checked_target,
    kept_part,
    lora_factors,
    truncated,
    write_adapter,
)
from minisd.merging import check_alike, check_part_alike
from minisd.weights_loader.checkpoint import Checkpoint, open_checkpoint
from minisd.weights_loader.lora_names import Target, kohya_names


@dataclass(frozen=True)
class Extracted:
    """What was written. kept: energy by part, 0..1. unchanged: layers that do not differ. left_out: changes
    that a LoRA does not hold (norms, biases, tables of words), and the share of all energy that they are."""

    path: Path
    modules: dict[str, int]
    kept: dict[str, float]
    unchanged: int
    left_out: int
    left_out_energy: float
    absent: tuple[str, ...]  # text encoders that one of the models lacks


def extract(
    tuned: str | os.PathLike[str],
    base: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    rank: int = 32,
    conv_rank: int | None = None,
    whole: bool = False,
    dtype: str = "float16",
    progress: Callable[[int, int], None] | None = None,
) -> Extracted:
    """Write what turns the model `base` into `tuned` to `target`, which must not exist, under kohya's names.

    conv_rank: of convolutions with more than one tap (None: as `rank`). whole: also changes of norms and
    biases, which are written as they are. Raises CheckpointError, RequestError; nothing is left behind then.
    """
    checked_rank("rank", rank)
    conv_rank = rank if conv_rank is None else checked_rank("conv_rank", conv_rank)
    kind = checked_dtype(dtype)
    path = checked_target(target, (tuned, base))
    with open_checkpoint(tuned) as one, open_checkpoint(base) as two:
        check_alike(one, two)
        assert one.config is not None and two.config is not None
        if one.config.unet != two.config.unet:
            raise CheckpointError(
                f"{quoted(one.name)} takes {one.config.unet.in_channels} channels, {quoted(two.name)} "
                f"{two.config.unet.in_channels}; a LoRA changes no shapes"
            )
        wanted = ["unet", *(use.part for use in one.config.text)]
        parts = [p for p in wanted if p in one.parts and p in two.parts]
        for part in parts:
            check_part_alike(part, (one, two))
        targets = {t: name for t, name in kohya_names(one.config).items() if t.part in parts}
        account = Account()
        modules: dict[str, dict[str, Tensor]] = {}
        for done, (found, name) in enumerate(targets.items()):
            factors = account.factors(one, two, found, rank, conv_rank, kind, whole)
            if factors:
                modules[name] = factors
            if progress is not None:
                progress(done + 1, len(targets))
        lost = account.left_out_energy / (sum(account.whole.values()) + account.left_out_energy or 1.0)
        more = {
            "minisd.extracted": f"{one.name} {file_sha256(one.path)} - {two.name} {file_sha256(two.path)}"
        }
        write_adapter(path, modules, one.config, more)
        return Extracted(
            path=path,
            modules=account.modules,
            kept={p: kept_part(w, account.lost[p]) for p, w in account.whole.items()},
            unchanged=account.unchanged,
            left_out=account.left_out,
            left_out_energy=lost,
            absent=tuple(p for p in wanted if p not in parts),
        )


class Account:
    """Sums over the layers seen so far."""

    def __init__(self) -> None:
        self.modules: dict[str, int] = {}
        self.whole: dict[str, float] = {}
        self.lost: dict[str, float] = {}
        self.unchanged = self.left_out = 0
        self.left_out_energy = 0.0

    def factors(
        self,
        one: Checkpoint,
        two: Checkpoint,
        target: Target,
        rank: int,
        conv_rank: int,
        dtype: torch.dtype,
        whole: bool,
    ) -> dict[str, Tensor]:
        """What is written of one layer; nothing where it does not differ."""
        table, norm = "embedding" in target.module, len(target.shape) == 1
        out: dict[str, Tensor] = {}
        change = difference(one, two, target, "weight")
        if change is None:
            self.unchanged += 1
        elif table or (norm and not whole):
            self.leave_out(change)
        elif norm:
            out["w_norm"] = change.to(dtype)
        else:
            taps = target.shape[2:]
            matrix = change.reshape(target.shape[0], -1)
            up, down, energy, lost = truncated(matrix, conv_rank if taps not in ((), (1, 1)) else rank)
            self.whole[target.part] = self.whole.get(target.part, 0.0) + energy
            self.lost[target.part] = self.lost.get(target.part, 0.0) + lost
            out |= lora_factors(up, down, target.shape, dtype)
        bias = difference(one, two, target, "bias") if target.bias else None
        if bias is not None and whole:
            out["b_norm" if norm else "diff_b"] = bias.to(dtype)
        elif bias is not None:
            self.leave_out(bias)
        if out:
            self.modules[target.part] = self.modules.get(target.part, 0) + 1
        return out

    def leave_out(self, change: Tensor) -> None:
        self.left_out += 1
        self.left_out_energy += float(change.double().square().sum())


def difference(one: Checkpoint, two: Checkpoint, target: Target, kind: str) -> Tensor | None:
    """one - two of a parameter in float32, or float64 where both are; None where no value differs."""
    name = f"{target.module}.{kind}"
    values = []
    for model in (one, two):
        rule = next(r for r in model.part(target.part).rules if r.ours == name)
        stored = model.reader(target.part).dtype_of(rule)
        wide = torch.float64 if stored == torch.float64 else torch.float32
        values.append(model.reader(target.part, dtype=wide).read(rule))
    change = values[0] - values[1]
    return change if bool(change.any()) else None
