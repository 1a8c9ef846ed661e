"""Adapters made part of a model's weights, for a file that holds them for good."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from minisd.adapters import Term, Use, bias_of, ordered, terms_of, total
from minisd.errors import CheckpointError, RequestError, listed, quoted
from minisd.lora_use import LoraUse
from minisd.weights_loader.checkpoint import Checkpoint
from minisd.weights_loader.computed import computed, wide_dtype
from minisd.weights_loader.lora_file import open_adapter
from minisd.weights_loader.lora_names import spellings
from minisd.weights_loader.rule import Rule


def opened_uses(checkpoint: Checkpoint, uses: Sequence[LoraUse]) -> list[Use]:
    """The adapters whose paths are the names of `uses`, for this model. Raises CheckpointError, and
    RequestError for what weights cannot hold."""
    if not uses:
        return []
    if checkpoint.config is None:
        raise CheckpointError(
            f"{quoted(checkpoint.name)} is {checkpoint.detection.summary}; adapters go into models with a "
            "UNet"
        )
    names, found = spellings(checkpoint.config), list[Use]()
    for use in uses:
        if not use.whole:
            raise RequestError(
                f"the LoRA {quoted(use.name)} acts in a part of the steps; weights act in all of them",
                field="loras",
            )
        adapter = open_adapter(use.name, names)
        if use.sha256 not in (None, adapter.sha256):
            raise RequestError(
                f"the LoRA {quoted(use.name)} is another file than was asked for: its sha256 is "
                f"{adapter.sha256}, not {use.sha256}",
                field="loras",
            )
        if adapter.embeddings:
            words = listed([e.name for e in adapter.embeddings])
            raise CheckpointError(
                f"{quoted(use.name)} brings the words {words}; a model's file has no place for them"
            )
        lacking = sorted({part for part, _ in adapter.changes} - set(checkpoint.parts))
        if lacking:
            raise CheckpointError(
                f"{quoted(use.name)} changes the {listed(lacking)}, which {quoted(checkpoint.name)} lacks; "
                "take the part from another file"
            )
        found.append((adapter, use))
    return found


def baked(base: Checkpoint, uses: Sequence[Use], *, ema: bool | None = None) -> Checkpoint:
    """The checkpoint with adapters in its weights, made while they are read: each sum in float32 (float64 for
    float64 weights), rounded once, as `adapters.adapted` makes it. ema: start from the EMA copy."""
    terms = {part: terms_of(ordered(uses), part) for part in base.parts}

    def make(part: str, rule: Rule, wanted: torch.dtype) -> Tensor:
        copy = ema if part == "unet" else None
        module, _, kind = rule.ours.rpartition(".")
        acting = terms[part].get(module, [])
        if not acts(acting, kind):
            return base.reader(part, dtype=wanted, ema=copy).read(rule)
        stored = base.reader(part, ema=copy).dtype_of(rule)
        value = base.reader(part, dtype=wide_dtype(stored, wanted), ema=copy).read(rule)
        if kind == "weight":
            return total(value, acting)
        change = bias_of(acting, value.dtype, value.device)
        return value if change is None else value + change

    return computed(base, make, ema=ema)


def acts(terms: Sequence[Term], kind: str) -> bool:
    """Whether one of these changes the weight, or the bias, of its module."""
    if kind == "weight":
        return any(t.change.factors for t in terms)
    return kind == "bias" and any(t.change.bias is not None for t in terms)
