"""What the pickles of torch.save may name, and what each name means here: descriptions, never the thing
itself.

Names: torch/_utils.py and torch/serialization.py (2.x), and those in released checkpoints of the Lightning
era.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from minisd.weights_loader.source import DTYPES


@dataclass(frozen=True, eq=False, slots=True)
class Name:
    """A name that the file asked for and the table knows; `make` is what calling it means here."""

    name: str
    make: Callable[[tuple[object, ...]], object] | None = None
    dtype: torch.dtype | None = None


@dataclass(frozen=True, eq=False, slots=True)
class Inert:
    """An object of a known class whose content is of no use here."""

    name: str


@dataclass(frozen=True, slots=True)
class StorageRef:
    """A run of `numel` elements stored under `key`. `location` ("cpu", "cuda:0") is recorded, never "
    "followed."""

    key: str
    dtype: torch.dtype
    numel: int
    location: str


@dataclass(frozen=True, slots=True)
class TensorRef:
    """A view of a storage as the file declares it, in elements, unchecked against the storage."""

    storage: StorageRef
    dtype: torch.dtype
    offset: int
    shape: tuple[object, ...]
    stride: tuple[object, ...]


class OrderedDict(dict[object, object]):
    """collections.OrderedDict: the only dict that may be given attributes, which are dropped."""


class ParameterDict(OrderedDict):
    """torch.nn.ParameterDict: its attributes hold its content (textual inversion)."""


class BadArguments(Exception):
    """Arguments of a known function that do not fit it; the machine adds the offset."""


def _storage_tensor(args: tuple[object, ...]) -> TensorRef:
    # _rebuild_tensor(storage, offset, size, stride); _v2 adds requires_grad, hooks, metadata
    storage, offset, shape, stride, *_ = args
    if type(storage) is not StorageRef or type(offset) is not int:
        raise BadArguments
    if not isinstance(shape, tuple) or not isinstance(stride, tuple):
        raise BadArguments
    return TensorRef(storage, storage.dtype, offset, shape, stride)


def _typed_tensor(args: tuple[object, ...]) -> TensorRef:
    # _rebuild_tensor_v3(..., requires_grad, hooks, dtype[, metadata]) over bytes: float8
    tensor, name = _storage_tensor(args), args[6]
    if not isinstance(name, Name) or name.dtype is None:
        raise BadArguments
    return TensorRef(tensor.storage, name.dtype, tensor.offset, tensor.shape, tensor.stride)


def _parameter(args: tuple[object, ...]) -> object:
    if not args or not isinstance(args[0], TensorRef):
        raise BadArguments
    return args[0]


def _ordered_dict(args: tuple[object, ...]) -> OrderedDict:
    made = OrderedDict()
    pairs = args[0] if args else []
    if len(args) > 1 or not isinstance(pairs, list):
        raise BadArguments
    for pair in pairs:
        if not isinstance(pair, list | tuple) or len(pair) != 2 or type(pair[0]) not in KEYS:
            raise BadArguments
        made[pair[0]] = pair[1]
    return made


def _parameter_dict(args: tuple[object, ...]) -> ParameterDict:
    if args:
        raise BadArguments
    return ParameterDict()


def _size(args: tuple[object, ...]) -> tuple[object, ...]:
    if len(args) != 1 or not isinstance(args[0], tuple):
        raise BadArguments
    return args[0]


def _encode(args: tuple[object, ...]) -> bytes:
    text = args[0] if args else None
    if not isinstance(text, str) or args[1:] not in (("latin1",), ()):
        raise BadArguments
    return text.encode("latin-1")


_STORAGES = {
    "Float": torch.float32,
    "Half": torch.float16,
    "Double": torch.float64,
    "BFloat16": torch.bfloat16,
    "Long": torch.int64,
    "Int": torch.int32,
    "Short": torch.int16,
    "Char": torch.int8,
    "Byte": torch.uint8,
    "Bool": torch.bool,
}
_FUNCTIONS: dict[str, Callable[[tuple[object, ...]], object]] = {
    "collections.OrderedDict": _ordered_dict,
    "torch._utils._rebuild_tensor": _storage_tensor,
    "torch._utils._rebuild_tensor_v2": _storage_tensor,
    "torch._utils._rebuild_tensor_v3": _typed_tensor,
    "torch._utils._rebuild_parameter": _parameter,
    "torch.nn.modules.container.ParameterDict": _parameter_dict,
    "torch.Size": _size,
    "_codecs.encode": _encode,
}
_INERT = (
    "__builtin__.set",
    "argparse.Namespace",
    "numpy.core.multiarray.scalar",
    "numpy.core.multiarray._reconstruct",
    "numpy._core.multiarray.scalar",
    "numpy._core.multiarray._reconstruct",
    "numpy.dtype",
    "numpy.ndarray",
    "pytorch_lightning.callbacks.early_stopping.EarlyStopping",
    "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint",
    "torch.device",
)


def _inert(name: str) -> Name:
    return Name(name, lambda _: Inert(name))


NAMES: dict[str, Name] = {
    **{name: Name(name, make) for name, make in _FUNCTIONS.items()},
    **{name: _inert(name) for name in _INERT},
    **{
        f"torch.{kind}Storage": Name(f"torch.{kind}Storage", None, dtype) for kind, dtype in _STORAGES.items()
    },
    **{
        name: Name(name, None, torch.uint8)
        for name in ("torch.storage.UntypedStorage", "torch.UntypedStorage")
    },
    **{str(dtype): Name(str(dtype), None, dtype) for dtype in DTYPES.values()},
}
KEYS = frozenset(
    (str, int, float, bool, type(None), bytes, Name, Inert)
)  # hashing a nested tuple could be endless
