"""A TensorSource without a file: names and shapes of any size that take no memory, or real small tensors."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from minisd.weights_loader.source import DTYPES, TensorInfo


class FakeSource:
    """Tensors given are read as they are; the others are zeros of stride 0, which take one element of
    memory."""

    container = "fake"

    def __init__(
        self,
        infos: Mapping[str, TensorInfo],
        tensors: Mapping[str, Tensor] | None = None,
        metadata: Mapping[str, str] | None = None,
        name: str = "model.safetensors",
    ) -> None:
        self.path = Path(name)
        self.tensors: Mapping[str, TensorInfo] = dict(infos)
        self.metadata: Mapping[str, str] = dict(metadata or {})
        self.reads: list[str] = []
        self._given = dict(tensors or {})

    def read(self, name: str, *, dtype: torch.dtype | None = None) -> Tensor:
        self.reads.append(name)
        info = self.tensors[name]
        if name in self._given:
            return self._given[name].to(dtype or info.dtype, copy=True)
        return torch.zeros((), dtype=dtype or info.dtype).expand(info.shape)

    def close(self) -> None:
        return None


def of_rows(rows: Mapping[str, list], prefix: str = "") -> dict[str, TensorInfo]:
    """From the rows of a manifest: {name: [dtype, *shape]}."""
    return {prefix + n: TensorInfo(prefix + n, DTYPES[row[0]], tuple(row[1:])) for n, row in rows.items()}


def of_shapes(shapes: Mapping[str, tuple[int, ...]], prefix: str = "") -> dict[str, TensorInfo]:
    return {prefix + n: TensorInfo(prefix + n, torch.float32, tuple(s)) for n, s in shapes.items()}


def of_tensors(tensors: Mapping[str, Tensor]) -> dict[str, TensorInfo]:
    return {n: TensorInfo(n, t.dtype, tuple(t.shape)) for n, t in tensors.items()}
