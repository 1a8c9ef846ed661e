"""A file that holds an upscaler: what it is, its config, and its weights in our names, strictly.

with open_upscaler("RealESRGAN_x4plus.pth") as file:
    network.load_state_dict(file.state_dict(), strict=True, assign=True)
"""

from __future__ import annotations

import os
from types import TracebackType

import torch
from torch import Tensor

from minisd.config import CompactConfig, RRDBNetConfig, UpscalerConfig
from minisd.errors import CheckpointError, listed, quoted
from minisd.weights_loader.open import open_source
from minisd.weights_loader.part import Part, PartReader, check_part, make_part
from minisd.weights_loader.places import below
from minisd.weights_loader.source import TensorSource
from minisd.weights_loader.upscaler_keymap import (
    MARKS,
    Spelling,
    compact_rules,
    derive_compact,
    derive_rrdbnet,
    rrdbnet_rules,
)

PREFIXES = ("params_ema.", "params.", "")  # the first that is there is read


class OtherArchitecture(CheckpointError):
    """A file of tensors that are not those of a network written here."""


class UpscalerFile:
    """An opened upscaler. Thread-safe to read; a context manager."""

    def __init__(self, source: TensorSource, part: Part) -> None:
        self.source, self.part = source, part

    @property
    def name(self) -> str:
        return self.source.path.name

    @property
    def config(self) -> UpscalerConfig:
        assert isinstance(self.part.config, RRDBNetConfig | CompactConfig)
        return self.part.config

    def state_dict(self, *, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
        """Every parameter under our names, one tensor read at a time. Raises CheckpointError."""
        reader = PartReader(self.source, self.part, dtype=dtype)
        return {rule.ours: reader.read(rule) for rule in self.part.rules}

    def close(self) -> None:
        self.source.close()

    def __enter__(self) -> UpscalerFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def open_upscaler(path: str | os.PathLike[str]) -> UpscalerFile:
    """Raises CheckpointError for what is no RRDBNet and no SRVGGNetCompact, or not a whole one."""
    source = open_source(path)
    try:
        return upscaler_of(source)
    except BaseException:
        source.close()
        raise


def upscaler_of(source: TensorSource) -> UpscalerFile:
    """The upscaler in an opened container."""
    tensors, name = source.tensors, source.path.name
    prefix, spelling = place_of(source)
    shapes = below(tensors, prefix)
    config: UpscalerConfig
    if spelling == "compact":
        config = derive_compact(shapes)
        rules = compact_rules(config)
    else:
        config = derive_rrdbnet(shapes, spelling)
        rules = rrdbnet_rules(config, spelling)
    part = make_part("upscaler", prefix, spelling, config, rules, tensors)
    check_part(part, tensors, f"{quoted(name)}: upscaler")
    read = part.names(tensors)
    others = tuple(p for p in PREFIXES if p and p != prefix)  # the copy without EMA
    unknown = [n for n in tensors if n not in read and not n.startswith(others)]
    if unknown:
        raise OtherArchitecture(
            f"{quoted(name)} was taken for an upscaler, but {len(unknown)} tensors are not of it: "
            f"{listed(unknown)}; it may be of another architecture"
        )
    return UpscalerFile(source, part)


def place_of(source: TensorSource) -> tuple[str, Spelling]:
    """(prefix, spelling) of the network."""
    for prefix in PREFIXES:
        for spelling, mark in MARKS.items():
            info = source.tensors.get(prefix + mark)
            if info is not None and (spelling != "compact" or len(info.shape) == 1):
                return prefix, spelling
    raise OtherArchitecture(
        f"{quoted(source.path.name)} holds no upscaler that minisd knows (RRDBNet of ESRGAN and Real-ESRGAN, "
        f"SRVGGNetCompact); its first tensors are {listed(list(source.tensors)[:3])}"
    )
