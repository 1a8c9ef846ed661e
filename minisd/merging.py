"""Several checkpoints of one family made into one, tensor by tensor while they are read.

    weighted     (1 - m) A + m B
    difference   A + m (B - C)
    ties         A + m elect(trim(B - A), trim(C - A), ...)             Yadav et al. 2023, arXiv:2306.01708
    dare         A + m sum of share * drop(B - A), ...                  Yu et al. 2023, arXiv:2311.03099
    dare_ties    A + m elect(drop(B - A), drop(C - A), ...)

m is the weight, or the number of the block that a tensor lies in. trim keeps the `density` largest values of
a tensor, drop keeps a random `density` of them and divides by it; elect takes, place by place, the sign that
has more share * size, and the mean of those with that sign, weighted by their shares. What is dropped follows
from (seed, model, name, place) by the Philox generator of our noise: the same on every machine.

Sums are made in float32 (float64 for float64 weights) and rounded once. Where m is 0, and where a weighted
sum's is 1, the source's own bits are kept.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from minisd.blocks import Blocks, find, names_in, read_blocks
from minisd.config import ModelConfig
from minisd.conversion import write_model
from minisd.errors import CheckpointError, RequestError, listed, quoted
from minisd.hashes import file_sha256
from minisd.samplers.noise import philox4x32
from minisd.weights_loader.checkpoint import Checkpoint, open_checkpoint
from minisd.weights_loader.computed import computed, wide_dtype
from minisd.weights_loader.kinds import FAMILY_NAMES
from minisd.weights_loader.rule import Rule

Method = Literal["weighted", "difference", "ties", "dare", "dare_ties"]
DEFAULT_WEIGHT = {"weighted": 0.5, "difference": 1.0, "ties": 1.0, "dare": 1.0, "dare_ties": 1.0}
MODELS = {"weighted": (2, 2), "difference": (3, 3), "ties": (2, 16), "dare": (2, 16), "dare_ties": (2, 16)}
FIRST = "input_blocks.0.0.weight"  # takes more channels in inpainting models
CHUNK = 2**18  # values that ties and dare work on at once
KEY = "minisd.merge"


@dataclass(frozen=True)
class Recipe:
    """How checkpoints are merged. weight: m of the formulas above (None: 0.5 of a weighted sum, else 1).
    blocks: other values of m, by block (`blocks.py`; also the lists of 25, 26, 19 or 20 numbers). shares: of
    ties and dare, one for each model after the first (None: 1 each). density: the part of a difference that
    is kept. text, vae: "merge", or the place of the model that text encoders and VAE are taken from, 0 the
    first (vae None: the first that holds one); what not every model holds is taken from the first that
    does."""

    method: Method = "weighted"
    weight: float | None = None
    blocks: Blocks = ()
    shares: tuple[float, ...] | None = None
    density: float = 0.5
    seed: int = 0
    text: Literal["merge"] | int = "merge"
    vae: Literal["merge"] | int | None = None

    def __post_init__(self) -> None:
        if self.method not in get_args(Method):
            raise RequestError(f"method is {quoted(self.method)}; known are {', '.join(get_args(Method))}")
        weight = DEFAULT_WEIGHT[self.method] if self.weight is None else self.weight
        object.__setattr__(self, "weight", number("weight", weight, -100.0, 100.0))
        object.__setattr__(self, "blocks", read_blocks(self.blocks, "the merge"))
        number("density", self.density, 1e-6, 1.0)
        if type(self.seed) is not int or not 0 <= self.seed < 2**64:
            raise RequestError(f"seed is {quoted(self.seed)}; expected a whole number in 0..2^64 - 1")
        if self.shares is not None:
            object.__setattr__(self, "shares", tuple(number("share", s, -100.0, 100.0) for s in self.shares))
        for name in ("text", "vae"):
            value = getattr(self, name)
            free = value == "merge" or (name == "vae" and value is None)
            if not free and (type(value) is not int or not 0 <= value < 16):
                raise RequestError(f"{name} is {quoted(value)}; expected merge, or the place of a model")

    def strength(self, part: str, module: str) -> float:
        """m of a module."""
        found = find(self.blocks, part, module)
        assert self.weight is not None
        return self.weight if found is None else found


def number(name: str, value: object, low: float, high: float) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise RequestError(f"{name} is {quoted(value)}; expected a number in {low:g}..{high:g}")
    return float(value)


def merge(
    models: Sequence[str | os.PathLike[str]],
    target: str | os.PathLike[str],
    recipe: Recipe,
    *,
    layout: str = "original",
    dtype: str | None = None,
) -> Path:
    """Write the merge of the checkpoints at `models` to `target`, which must not exist. layout, dtype: as of
    `convert`; None keeps the first model's dtypes. The recipe, with the sha256 of every input, is in the
    metadata. Raises CheckpointError, RequestError; nothing is left behind then."""
    if Path(target).exists():
        raise CheckpointError(f"{quoted(Path(target).name)} exists; give a name that is free")
    with ExitStack() as files:
        opened = [files.enter_context(open_checkpoint(path)) for path in models]
        made = merged(opened, recipe)
        names = [c.path.stem for c in opened]
        account = {
            **asdict(recipe),
            "models": [{"name": c.name, "sha256": file_sha256(c.path)} for c in opened],
        }
        metadata = {
            KEY: json.dumps(account, sort_keys=True),
            "modelspec.title": Path(target).stem,
            "modelspec.merged_from": ", ".join(names),
        }
        return write_model(made, target, layout=layout, dtype=dtype, metadata=metadata)


def merged(models: Sequence[Checkpoint], recipe: Recipe) -> Checkpoint:
    """The merge as a checkpoint, computed while it is read; it reads from `models`, which stay open.

    Raises CheckpointError for models that do not go together, RequestError for a recipe that does not fit.
    """
    low, high = MODELS[recipe.method]
    if not low <= len(models) <= high:
        wanted = str(low) if low == high else f"{low} to {high}"
        raise RequestError(f"{recipe.method} takes {wanted} models, got {len(models)}")
    if recipe.shares is not None and len(recipe.shares) != len(models) - 1:
        raise RequestError(f"shares are {len(recipe.shares)}; expected one for each model after the first")
    first = models[0]
    for other in models[1:]:
        check_alike(first, other)
    check_blocks(recipe, first)
    base, mixed = first, {"unet"}
    for part in parts_of(models):
        chosen = recipe.vae if part == "vae" else recipe.text
        holders = [n for n, model in enumerate(models) if part in model.parts]
        if isinstance(chosen, int) and chosen >= len(models):
            raise RequestError(f"the {part} is to be of model {chosen}; there are {len(models)} from 0 on")
        if chosen == "merge" and len(holders) == len(models):
            check_part_alike(part, models)
            mixed.add(part)
            continue
        source = chosen if isinstance(chosen, int) else holders[0]
        if source not in holders:
            raise CheckpointError(
                f"{quoted(models[source].name)} holds no {part}; take it from "
                f"{listed([models[n].name for n in holders])}"
            )
        base = base if source == 0 else base.swap(part, models[source])

    members = [Member(model) for model in models]

    def make(part: str, rule: Rule, wanted: torch.dtype) -> Tensor:
        if part not in mixed:
            return base.reader(part, dtype=wanted).read(rule)
        return mixed_tensor(members, recipe, part, rule, wanted)

    return computed(base, make)


def parts_of(models: Sequence[Checkpoint]) -> list[str]:
    """VAE and text encoders that some model holds."""
    config = models[0].config
    assert config is not None
    wanted = [*(use.part for use in config.text), "vae"]
    return [p for p in wanted if any(p in m.parts for m in models)]


def check_alike(a: Checkpoint, b: Checkpoint) -> None:
    """Raises CheckpointError, with the reason, for models whose weights do not mean the same."""
    one, two = (usable(c) for c in (a, b))
    both = f"{quoted(a.name)} and {quoted(b.name)} do not merge"
    if one.family != two.family:
        raise CheckpointError(
            f"{both}: one is {FAMILY_NAMES[one.family]}, the other {FAMILY_NAMES[two.family]}"
        )
    if one.prediction != two.prediction:
        raise CheckpointError(
            f"{both}: one predicts {one.prediction}, the other {two.prediction}; what lies between is noise"
        )
    differs = [
        field
        for field, value in asdict(one.unet).items()
        if value != asdict(two.unet)[field] and field != "in_channels"
    ]
    if differs:
        raise CheckpointError(f"{both}: their UNets differ in {', '.join(differs)}")
    if two.unet.in_channels > one.unet.in_channels:
        raise CheckpointError(
            f"{both} in this order: {quoted(b.name)} takes {two.unet.in_channels} channels and "
            f"{quoted(a.name)} {one.unet.in_channels}; name the one with more first"
        )


def usable(checkpoint: Checkpoint) -> ModelConfig:
    if checkpoint.config is None:
        raise CheckpointError(
            f"{quoted(checkpoint.name)} is {checkpoint.detection.summary}; only models with a UNet merge"
        )
    return checkpoint.config


def check_part_alike(part: str, models: Sequence[Checkpoint]) -> None:
    shapes = [{r.ours: r.shape for r in m.part(part).rules} for m in models]
    for model, other in zip(models[1:], shapes[1:], strict=True):
        if other != shapes[0]:
            differ = sorted(n for n in shapes[0].keys() | other.keys() if shapes[0].get(n) != other.get(n))
            raise CheckpointError(
                f"the {part} of {quoted(models[0].name)} and of {quoted(model.name)} differ in shape "
                f"({listed(differ, 3)}); take it from one of them"
            )


def check_blocks(recipe: Recipe, model: Checkpoint) -> None:
    known = {
        (r.ours if part == "unet" else f"{part}.{r.ours}").rpartition(".")[0]
        for part in model.parts
        for r in model.part(part).rules
    }
    if unknown := names_in(recipe.blocks, known):
        raise RequestError(f"blocks of the merge name {listed(unknown)}, which {quoted(model.name)} has not")


def mixed_tensor(
    models: Sequence[Member], recipe: Recipe, part: str, rule: Rule, wanted: torch.dtype
) -> Tensor:
    """One parameter of the merge."""
    m = recipe.strength(part, rule.ours.rpartition(".")[0])
    if m == 0.0:
        return models[0].read(part, rule.ours, None)
    if recipe.method == "weighted" and m == 1.0:
        whole = models[1].read(part, rule.ours, None)
        if whole.shape == rule.shape:
            return whole
    wide = wide_dtype(wanted, models[0].dtype_of(part, rule.ours))
    first = models[0].read(part, rule.ours, wide)
    others = [model.read(part, rule.ours, wide) for model in models[1:]]
    narrow = {o.shape[1] for o in others if o.shape != first.shape}
    if not narrow:
        return combined(recipe, m, first, others, f"{part}.{rule.ours}")
    channels = min(narrow)  # an inpainting model with a plain one: the channels that both know
    alike = [o[:, :channels] for o in others]
    changed = combined(recipe, m, first[:, :channels].contiguous(), alike, f"{part}.{rule.ours}")
    return torch.cat([changed, first[:, channels:]], dim=1)


def combined(recipe: Recipe, m: float, first: Tensor, others: Sequence[Tensor], name: str) -> Tensor:
    """The formula of the recipe, on tensors of one shape and dtype, which are not written to."""
    if recipe.method == "weighted":
        return (first * (1.0 - m)).add_(others[0], alpha=m)
    if recipe.method == "difference":
        return (others[0] - others[1]).mul_(m).add_(first)
    shares = recipe.shares or (1.0,) * len(others)
    ties = recipe.method == "ties"
    limits = [least_kept(other - first, recipe.density) if ties else 0.0 for other in others]
    out = torch.empty(first.shape, dtype=first.dtype)
    for start in range(
        0, first.numel(), CHUNK
    ):  # in pieces: memory for a few copies of a tensor, not a dozen
        base, made, *rest = (t.flatten()[start : start + CHUNK] for t in (first, out, *others))
        changes = [
            over(other - base, limits[n])
            if ties
            else dropped(other - base, recipe.density, recipe.seed, f"{n} {name}", start)
            for n, other in enumerate(rest)
        ]
        if recipe.method == "dare":
            total = torch.stack([s * c for s, c in zip(shares, changes, strict=True)]).sum(0)
        else:
            total = elected(changes, shares)
        made.copy_(total.mul_(m).add_(base))
    return out


def trimmed(delta: Tensor, density: float) -> Tensor:
    """The largest values of a tensor, the rest 0: density * n of them, more where sizes are equal."""
    return over(delta, least_kept(delta, density))


def least_kept(delta: Tensor, density: float) -> float:
    """The smallest size that `trimmed` keeps."""
    n = delta.numel()
    kept = min(n, max(1, round(density * n)))
    if kept == n:
        return 0.0
    size = delta.abs().flatten().numpy()
    size.partition(n - kept)
    return float(size[n - kept])


def over(delta: Tensor, least: float) -> Tensor:
    return torch.where(delta.abs() >= least, delta, 0.0)


def dropped(delta: Tensor, density: float, seed: int, stream: str, start: int = 0) -> Tensor:
    """Each value kept with probability `density` and divided by it, else 0. start: the place of the first in
    its tensor, a multiple of 4."""
    keep = torch.from_numpy(uniform(seed, stream, start, delta.numel()) < density)
    return torch.where(keep.reshape(delta.shape), delta / density, 0.0)


def uniform(seed: int, stream: str, start: int, count: int) -> np.ndarray:
    """Numbers start .. start + count of a stream, float64 in [0, 1). start: a multiple of 4. The counter's
    last word, 0 for the noise of pictures, is 1 here."""
    named = np.frombuffer(hashlib.blake2b(stream.encode(), digest_size=8).digest(), dtype="<u4")
    blocks = -(-count // 4)
    counter = np.empty((4, blocks), dtype=np.uint32)
    counter[0], counter[1], counter[3] = named[0], named[1], 1
    counter[2] = np.arange(start // 4, start // 4 + blocks, dtype=np.uint32)
    words = philox4x32(counter, (seed & 0xFFFFFFFF, seed >> 32 & 0xFFFFFFFF))
    return words.T.reshape(-1)[:count] * 2.0**-32


def elected(changes: Sequence[Tensor], shares: Sequence[float]) -> Tensor:
    """Place by place: the mean, weighted by shares, of those values that have the sign of the sum."""
    parts = torch.stack([s * c for s, c in zip(shares, changes, strict=True)])
    sign = torch.sign(parts.sum(0))
    agree = (torch.sign(parts) == sign) & (parts != 0)
    weights = torch.tensor(shares, dtype=parts.dtype).abs().reshape(-1, *[1] * (parts.ndim - 1))
    total = (weights * agree).sum(0)
    return torch.where(total > 0, (parts * agree).sum(0) / torch.where(total > 0, total, 1.0), 0.0)


class Member:
    """A model of a merge, read by our names."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint
        self._rules = {p: {r.ours: r for r in checkpoint.part(p).rules} for p in checkpoint.parts}

    def read(self, part: str, ours: str, dtype: torch.dtype | None) -> Tensor:
        """A new tensor; a reader would hold on to its last one."""
        return self._checkpoint.reader(part, dtype=dtype).read(self._rules[part][ours])

    def dtype_of(self, part: str, ours: str) -> torch.dtype:
        return self._checkpoint.reader(part).dtype_of(self._rules[part][ours])
