"""What every container gives: named tensors with dtype and shape known before a byte of data is read.

`TensorSource` is implemented by `safetensors_file.SafetensorsFile`, `pickle_file.PickleFile` (legacy .ckpt,
nothing executed) and `sharded.ShardedSource`. The rest of the loader sees only this. Opening reads headers;
`read` reads one tensor.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

DTYPES: dict[str, torch.dtype] = {  # safetensors' names
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """A tensor as its file declares it, after every bound has been checked."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


Tensors = Mapping[str, TensorInfo]


class TensorSource(Protocol):
    """An opened container. Thread-safe to read; `close` gives the file back."""

    path: Path
    container: str  # "safetensors", "torch zip", "torch legacy", "sharded safetensors"
    tensors: Mapping[str, TensorInfo]
    metadata: Mapping[
        str, str
    ]  # safetensors __metadata__; for pickles the plain top-level scalars, as strings

    def read(self, name: str, *, dtype: torch.dtype | None = None) -> Tensor:
        """A fresh CPU tensor of this name, in the file's dtype or converted to `dtype`; never shares the
        file's memory.

        Reading holds at most this one tensor twice (file's dtype and target dtype). Raises CheckpointError
        when the file changed since it was opened or ends early, KeyError for a name that is not there (a bug
        of ours).
        """
        ...

    def close(self) -> None: ...
