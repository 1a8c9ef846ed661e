"""A checkpoint whose tensors are made while they are read: a merge, a model with adapters in its weights.

It is read, converted and loaded as any other, one tensor at a time; nothing of it is held. Its tensors stand
under `PART/our.name`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from minisd.weights_loader.checkpoint import Checkpoint
from minisd.weights_loader.part import make_part
from minisd.weights_loader.prediction import MARKERS
from minisd.weights_loader.rule import Rule, same_names
from minisd.weights_loader.source import TensorInfo

Make = Callable[[str, Rule, torch.dtype], Tensor]
"""(part, the base's rule, dtype that is wanted) -> the parameter in our shape, in any floating dtype."""


class ComputedSource:
    """A `TensorSource` over `make`."""

    container = "computed"

    def __init__(
        self, base: Checkpoint, tensors: Mapping[str, TensorInfo], make: Callable[..., Tensor]
    ) -> None:
        self._base, self._make = base, make
        self.path: Path = base.path
        self.metadata: Mapping[str, str] = base.source.metadata
        self.tensors: Mapping[str, TensorInfo] = tensors

    def read(self, name: str, *, dtype: torch.dtype | None = None) -> Tensor:
        wanted = dtype or self.tensors[name].dtype
        return self._make(name, wanted).to(wanted)

    def close(self) -> None:
        self._base.close()


def computed(base: Checkpoint, make: Make, *, ema: bool | None = None) -> Checkpoint:
    """The checkpoint that `make` gives, with the parts, shapes, dtypes and config of `base`. ema: of the UNet
    whose dtypes count. Closing it closes the base."""
    infos: dict[str, TensorInfo] = {}
    rules: dict[str, tuple[str, Rule]] = {}
    for part in base.parts:
        reader = base.reader(part, ema=ema if part == "unet" else None)
        for rule in base.part(part).rules:
            name = f"{part}/{rule.ours}"
            infos[name] = TensorInfo(name, reader.dtype_of(rule), rule.shape)
            rules[name] = (part, rule)
    markers = {n: t for n, t in base.source.tensors.items() if n in MARKERS}

    def read(name: str, wanted: torch.dtype) -> Tensor:
        return base.source.read(name) if name in markers else make(*rules[name], wanted)

    source = ComputedSource(base, {**infos, **markers}, read)
    parts = {
        part: make_part(
            part, f"{part}/", "original", base.part(part).config, same_names(base.part(part).rules), infos
        )
        for part in base.parts
    }
    found = replace(base.detection, parts=parts, has_ema=False)
    return Checkpoint(source, found, base.config, {n: (source, p) for n, p in parts.items()}, False)


def wide_dtype(*dtypes: torch.dtype) -> torch.dtype:
    """What sums of tensors of these dtypes are made in: float64 if one is that, else float32."""
    return torch.float64 if torch.float64 in dtypes else torch.float32
