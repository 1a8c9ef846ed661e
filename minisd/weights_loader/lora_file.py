"""Adapter files of the LoRA family: from named tensors to one `Change` for each module of a model.

    adapter = read_adapter(source, spellings(config))   # names, ranks and shapes checked, then read
    adapter.report                                      # "applied 264/264 modules: 192 unet, ..."

Strict as the rest of the loader: a name that is no module of the model, a factor that belongs to nothing, a
missing half, ranks or shapes that differ, an alpha that is no positive number are errors that list what is
wrong. Nothing is skipped unless the caller allows it (`partial`), and then it is counted.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from minisd.errors import CheckpointError, listed, quoted
from minisd.weights_loader.embedding_file import EmbeddingVectors, embedding_vectors
from minisd.weights_loader.kinds import FAMILY_NAMES, not_a_model
from minisd.weights_loader.lora_alpha import PeftNumbers, peft_numbers, read_alpha
from minisd.weights_loader.lora_check import Group, check, magnitude_shape
from minisd.weights_loader.lora_kinds import BIASES, Change, Kind, scale_of
from minisd.weights_loader.lora_names import Target
from minisd.weights_loader.open import open_source
from minisd.weights_loader.part import check_finite
from minisd.weights_loader.source import TensorInfo, TensorSource

# suffix in the file: factor. The longest that fits counts; what stands before it is the module's name.
SUFFIXES: dict[str, str] = {
    **{f".{n}.weight": n for n in ("lora_down", "lora_up", "lora_mid", "a1", "a2", "b1", "b2", "bm")},
    **{f"{n}.down.weight": "lora_down" for n in (".lora", "_lora", ".lora_linear_layer")},
    **{f"{n}.up.weight": "lora_up" for n in (".lora", "_lora", ".lora_linear_layer")},
    **{f".lora_A{n}.weight": "lora_down" for n in ("", ".default")},
    **{f".lora_B{n}.weight": "lora_up" for n in ("", ".default")},
    **{f".lora_B{n}.bias": "lora_up_bias" for n in ("", ".default")},
    **{f".lora_magnitude_vector{n}": "dora_scale" for n in ("", ".weight", ".default", ".default.weight")},
    ".weight": "weight",  # of IA3, told by on_input beside it
    **{
        f".{n}": n
        for n in (
            "alpha dora_scale hada_w1_a hada_w1_b hada_w2_a hada_w2_b hada_t1 hada_t2 lokr_w1 lokr_w1_a "
            "lokr_w1_b lokr_w2 lokr_w2_a lokr_w2_b lokr_t2 oft_blocks rescale on_input diff diff_b w_norm "
            "b_norm"
        ).split()
    },
}
BY_LENGTH = sorted(SUFFIXES, key=len, reverse=True)
BUNDLED = "bundle_emb."

Names = Mapping[str, Target]


@dataclass(frozen=True)
class Adapter:
    """What one file changes. `changes` is keyed by part and module; `sha256` is of all names and tensors."""

    name: str
    sha256: str
    changes: Mapping[tuple[str, str], Change] = field(repr=False)
    embeddings: tuple[EmbeddingVectors, ...]
    metadata: Mapping[str, str] = field(repr=False)
    modules: int  # in the file
    skipped: tuple[str, ...] = ()  # names of modules that the model lacks, where that was allowed

    @property
    def report(self) -> str:
        """`applied 264/264 modules: 192 unet, 72 text_encoder (lora)`."""
        parts = Counter(part for part, _ in self.changes)
        kinds = Counter(c.kind if c.dora is None else f"{c.kind} with DoRA" for c in self.changes.values())
        shown = ", ".join(f"{count} {part}" for part, count in sorted(parts.items(), reverse=True))
        return f"applied {len(self.changes)}/{self.modules} modules: {shown} ({', '.join(sorted(kinds))})"


def open_adapter(path: str | os.PathLike[str], names: Names, *, partial: bool = False) -> Adapter:
    """Reads the adapter file at `path` for the model that `names` (of `lora_names.spellings`) belongs to.

    partial: leave out modules that the model lacks instead of refusing the file. Raises CheckpointError.
    """
    source = open_source(path)
    try:
        return read_adapter(source, names, partial=partial)
    finally:
        source.close()


def read_adapter(source: TensorSource, names: Names, *, partial: bool = False) -> Adapter:
    """The adapter in an opened container; see `open_adapter`. Headers are checked before a tensor is read."""
    found = match(source, names, partial=partial)
    declared = peft_numbers(source.metadata, quoted(source.path.name))
    changes = {
        (target.part, target.module): read_change(
            source, name, found.groups[name], found.kinds[target], declared, target
        )
        for target, name in found.names.items()
    }
    return Adapter(
        name=source.path.stem,
        sha256=content_digest(source),
        changes=changes,
        embeddings=tuple(
            embedding_vectors(source, {k: k[len(BUNDLED + n) + 1 :] for k in keys}, n)
            for n, keys in found.bundled.items()
        ),
        metadata=dict(source.metadata),
        modules=len(found.groups),
        skipped=found.skipped,
    )


@dataclass(frozen=True)
class Matched:
    """The tensors of a file sorted by module and held against a model, by headers alone."""

    groups: Mapping[str, Group]  # module's name in the file: {factor: tensor}
    names: Mapping[Target, str]  # module of the model: its name in the file
    kinds: Mapping[Target, Kind | None]  # None: a change of the bias alone
    bundled: Mapping[str, list[str]]  # embedding: its tensors
    skipped: tuple[str, ...]  # modules that the model lacks


def match(source: TensorSource, names: Names, *, partial: bool = False) -> Matched:
    """Finds every module of the file in `names`, checks kinds, ranks and shapes. Raises CheckpointError."""
    where = quoted(source.path.name)
    groups, bundled, unknown = sorted_by_module(source.tensors)
    if not any(f != "weight" for group in groups.values() for f in group):
        kind = not_a_model(source.tensors)
        what = kind.what if kind is not None else "no adapter that minisd knows"
        raise CheckpointError(f"{where} is {what}; expected a LoRA or another of its family")
    if unknown:
        raise CheckpointError(
            f"{where}: {len(unknown)} tensors are of no kind of adapter that minisd knows: {listed(unknown)}"
        )
    spelled: dict[Target, str] = {}
    skipped: list[str] = []
    for name in groups:
        target = names.get(name)
        if target is None:
            skipped.append(name)
        elif target in spelled:
            raise CheckpointError(
                f"{where} names the module {target} twice, as {quoted(spelled[target])} and as "
                f"{quoted(name)}; keep one of the two"
            )
        else:
            spelled[target] = name
    if skipped and (not partial or not spelled):
        raise CheckpointError(unmatched(where, skipped, len(groups), source.tensors))
    kinds = {target: check(where, name, target, groups[name]) for target, name in spelled.items()}
    return Matched(groups, spelled, kinds, bundled, tuple(skipped))


def unmatched(where: str, names: list[str], modules: int, tensors: Mapping[str, TensorInfo]) -> str:
    found = not_a_model(tensors)
    made = f"; it seems made for {FAMILY_NAMES[found.family]}" if found is not None and found.family else ""
    return (
        f"{where}: {len(names)} of {modules} modules are not in this model: {listed(sorted(names))}{made}; "
        "take an adapter of the model's family"
    )


def sorted_by_module(
    tensors: Mapping[str, TensorInfo],
) -> tuple[dict[str, Group], dict[str, list[str]], list[str]]:
    """({module's name in the file: {factor: tensor}}, {bundled embedding: its keys}, names that are
    neither)."""
    groups: dict[str, Group] = {}
    bundled: dict[str, list[str]] = {}
    unknown: list[str] = []
    for name, info in tensors.items():
        if name.startswith(BUNDLED):
            bundled.setdefault(name[len(BUNDLED) :].split(".")[0], []).append(name)
            continue
        suffix = next((s for s in BY_LENGTH if name.endswith(s)), None)
        if suffix is None or SUFFIXES[suffix] in groups.get(name.removesuffix(suffix), {}):
            unknown.append(name)
        else:
            groups.setdefault(name.removesuffix(suffix), {})[SUFFIXES[suffix]] = info
    return groups, bundled, unknown


def read_change(
    source: TensorSource, name: str, group: Group, kind: Kind | None, declared: PeftNumbers, target: Target
) -> Change:
    here = f"{quoted(source.path.name)}: {quoted(name)}"

    def read(factor: str) -> Tensor:
        tensor = source.read(group[factor].name)
        if tensor.dtype.is_floating_point:
            check_finite(tensor, group[factor].name, tensor.dtype)
        return tensor

    given = next((b for b in BIASES if b in group), None)
    bias = read(given) if given is not None else None
    if kind is None:
        return Change("full", {}, 1.0, None, bias)
    factors = {f: read(f) for f in group if f in kind.factors}
    shapes = {f: group[f].shape for f in factors}
    alpha, stabilised = declared.of(name) if "alpha" not in group else (None, False)
    if "alpha" in group:
        alpha = read_alpha(here, read("alpha"), kind)
    dora = None
    if "dora_scale" in group:
        dora = read("dora_scale").reshape(magnitude_shape(here, group["dora_scale"].shape, target))
    scale = scale_of(kind, shapes, alpha, stabilised)
    if given == "lora_up_bias" and bias is not None:
        bias = bias * scale  # PEFT scales the whole output of the side path
    return Change(kind.name, factors, scale, dora, bias)


def content_digest(source: TensorSource, names: Iterable[str] | None = None) -> str:
    """sha256 over names, dtypes, shapes and bytes of the tensors in the order of their names: the same for
    one adapter in any container."""
    digest = hashlib.sha256()
    for name in sorted(source.tensors if names is None else names):
        info = source.tensors[name]
        digest.update(f"{name}\n{info.dtype}\n{list(info.shape)}\n".encode())
        tensor = source.read(name).contiguous()
        if tensor.numel():
            digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
