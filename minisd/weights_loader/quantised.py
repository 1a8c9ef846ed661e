"""Weights stored in few bits, seen as the weights they stand for: a container over a container.

A file of ours says in its metadata which weights are stored how (`minisd.quantised`); scales lie beside them,
`X.weight` -> `X.scale_weight`. ComfyUI's scaled fp8 has the same names and says nothing. Above this, shapes
are those of the network, `read` widens, and `stored` gives what lies in the file.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, cast, runtime_checkable

import torch
from torch import Tensor

from minisd.errors import CheckpointError, quoted
from minisd.quantise.schemes import SCHEMES, Form, dequantise, form_of, stored_bytes
from minisd.weights_loader.source import TensorInfo, TensorSource

KEY = "minisd.quantised"
FORMAT = 1
MAX_CHARS = 4_000_000  # SDXL takes 0.1 million
FP8 = {torch.float8_e4m3fn: "e4m3", torch.float8_e5m2: "e5m2"}
Declared = dict[str, tuple[str, tuple[int, ...]]]  # weight: (scheme, its shape)


@dataclass(frozen=True, slots=True)
class QuantisedInfo(TensorInfo):
    """A weight with the shape that it has wide and the dtype of its codes."""

    scheme: str = "int8"

    @property
    def nbytes(self) -> int:
        return stored_bytes(self.scheme, self.shape)


@runtime_checkable
class StoredSource(TensorSource, Protocol):
    """A container that knows stored forms."""

    def stored(self, name: str) -> Form:
        """The tensors of a weight whose info is a QuantisedInfo, as they lie in the file, by the names of
        `quantise.schemes`."""
        ...


def quantised_view(source: TensorSource) -> TensorSource:
    """The container with stored weights seen as wide ones; itself if there are none. Raises CheckpointError
    for forms that are not what they are said to be."""
    declared = declared_in(source) | community(source)
    return QuantisedSource(source, declared) if declared else source


def declared_in(source: TensorSource) -> Declared:
    text = source.metadata.get(KEY)
    if text is None:
        return {}
    try:
        data = json.loads(text) if len(text) <= MAX_CHARS else None
    except (ValueError, RecursionError):
        data = None
    layers = data.get("layers") if isinstance(data, dict) and data.get("format") == FORMAT else None
    if not isinstance(layers, dict):
        raise CheckpointError(
            f"{KEY} in {quoted(source.path.name)} is not an object of format {FORMAT} with layers; "
            "the file is damaged or of a later version of minisd"
        )
    declared: Declared = {}
    for name, entry in layers.items():
        scheme, shape = entry if isinstance(entry, list) and len(entry) == 2 else (None, None)
        good = isinstance(scheme, str) and scheme in SCHEMES and name.endswith("weight")
        good = good and isinstance(shape, list) and len(shape) in (2, 4)
        if not good or not all(type(n) is int and 0 < n < 2**24 for n in cast(list[object], shape)):
            raise CheckpointError(
                f"{KEY} says {quoted(entry)} of {quoted(name)}; "
                f"expected one of {', '.join(SCHEMES)} and a shape"
            )
        declared[name] = cast(str, scheme), tuple(cast(list[int], shape))
    return declared


def community(source: TensorSource) -> Declared:
    """fp8 weights with a scale beside them, of which the metadata says nothing."""
    found: Declared = {}
    if KEY in source.metadata:
        return found
    for name, info in source.tensors.items():
        scale = source.tensors.get(beside(name, "scale_weight")) if name.endswith(".weight") else None
        if scale is None or info.dtype not in FP8:
            continue
        one = scale.shape in ((), (1,))
        if not one and scale.shape not in (info.shape[:1], (*info.shape[:1], 1)):
            raise CheckpointError(
                f"{quoted(scale.name)} is {list(scale.shape)}; expected one number, or one for each output"
            )
        found[name] = FP8[info.dtype] + ("_tensor" if one else ""), info.shape
    return found


def declaration(layers: Declared) -> str:
    """The text of `minisd.quantised` for a file with these weights."""
    entries = {name: [scheme, list(shape)] for name, (scheme, shape) in layers.items()}
    return json.dumps({"format": FORMAT, "layers": entries}, sort_keys=True, separators=(",", ":"))


def beside(weight: str, name: str) -> str:
    """`X.weight` -> `X.scale_weight`, `X.in_proj_weight` -> `X.in_proj_scale_weight`."""
    return weight.removesuffix("weight") + name


class QuantisedSource:
    """A `TensorSource` with stored weights as wide ones."""

    def __init__(self, source: TensorSource, declared: Declared) -> None:
        self._source, self._declared = source, declared
        self.path, self.container, self.metadata = source.path, source.container, source.metadata
        tensors, hidden = dict(source.tensors), set[str]()
        for weight, (scheme, shape) in declared.items():
            for name, (dtype, size) in form_of(scheme, shape).items():
                self._check(beside(weight, name), dtype, size)
                hidden.add(beside(weight, name))
            tensors[weight] = QuantisedInfo(weight, SCHEMES[scheme].codes, shape, scheme)
            hidden.discard(weight)
        self.tensors: Mapping[str, TensorInfo] = {n: i for n, i in tensors.items() if n not in hidden}

    def _check(self, name: str, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
        info, where = self._source.tensors.get(name), quoted(self.path.name)
        if info is None:
            raise CheckpointError(f"{where} lacks {quoted(name)}, which its quantised weights need")
        scale = dtype.is_floating_point and info.dtype.is_floating_point and dtype.itemsize > 1
        sizes = (shape, (1,)) if shape == () else (shape, (*shape, 1)) if scale else (shape,)
        if info.shape not in sizes or not (scale or info.dtype == dtype):
            raise CheckpointError(
                f"{where}: {quoted(name)} is {str(info.dtype)[6:]} {list(info.shape)}; "
                f"expected {str(dtype)[6:]} {list(shape)}"
            )

    def stored(self, name: str) -> Form:
        """As `StoredSource` says. Raises CheckpointError for a scale that is not finite."""
        scheme, shape = self._declared[name]
        form: Form = {}
        for part, (dtype, size) in form_of(scheme, shape).items():
            where = beside(name, part)
            tensor = self._source.read(where, dtype=dtype).reshape(size)
            if part != "weight" and not bool(torch.isfinite(tensor).all()):
                raise CheckpointError(f"{quoted(where)} is not finite; the file is damaged")
            form[part] = tensor
        return form

    def read(self, name: str, *, dtype: torch.dtype | None = None) -> Tensor:
        """As any TensorSource; a stored weight is widened, to float32 where no dtype is asked for."""
        if name not in self._declared:
            return self._source.read(name, dtype=dtype)
        scheme, shape = self._declared[name]
        return dequantise(self.stored(name), scheme, shape, dtype or torch.float32)

    def close(self) -> None:
        self._source.close()
