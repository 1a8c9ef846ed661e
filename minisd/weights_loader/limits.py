"""What no released checkpoint exceeds, and the checks of declared names and shapes that every container
shares.

SDXL base has 2,515 tensors with names of at most 109 bytes; the largest header seen is below 400 kB. The
limits leave room and keep a hostile file from costing more than a moment: they are checked before anything of
the declared size is made.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from minisd.errors import CheckpointError, quoted
from minisd.weights_loader.source import DTYPES

MAX_TENSORS = 20_000
MAX_NAME = 512  # bytes of UTF-8
MAX_RANK = 8
MAX_INDEX = 2**63 - 1  # what torch counts elements and bytes in
MAX_HEADER = 100_000_000  # bytes of a safetensors header (the format's own limit) or of one pickle


def check_name(name: str, where: str) -> None:
    """Refuses names that could write to a terminal or are no text: control characters, lone surrogates, over
    512 bytes.

    `where` opens the message: the file's name.
    """
    try:
        size = len(name.encode())
    except UnicodeEncodeError:
        raise CheckpointError(
            f"{where}: the tensor name {quoted(name)} is not valid Unicode; refusing"
        ) from None
    if size > MAX_NAME:
        raise CheckpointError(
            f"{where}: the tensor name {quoted(name, 60)} has {size:,} bytes; the limit is {MAX_NAME}"
        )
    if any(ord(c) < 0x20 or 0x7F <= ord(c) < 0xA0 for c in name):
        raise CheckpointError(f"{where}: the tensor name {quoted(name)} holds a control character; refusing")


def check_count(count: int, where: str) -> None:
    """Refuses more than MAX_TENSORS tensors."""
    if count > MAX_TENSORS:
        raise CheckpointError(
            f"{where}: {count:,} tensors; the limit is {MAX_TENSORS:,} (SDXL has about 2,500)"
        )


def checked_nbytes(name: str, shape: Sequence[object], dtype: torch.dtype, where: str) -> int:
    """Bytes of a tensor of this declared shape. Refuses dimensions that are no counts, rank over 8, products
    over 2^63 - 1.

    A zero does not hide an overflow: the other dimensions are multiplied as if it were 1, because strides
    are.
    """
    if len(shape) > MAX_RANK:
        raise CheckpointError(f"{where}: {quoted(name)} has {len(shape)} dimensions; the limit is {MAX_RANK}")
    total, empty = dtype.itemsize, False
    for size in shape:
        if type(size) is not int or size < 0:  # bool is an int to isinstance
            shown = quoted(list(shape))
            raise CheckpointError(
                f"{where}: {quoted(name)}.shape is {shown}; expected a list of non-negative integers"
            )
        total *= size or 1
        empty = empty or size == 0
        if total > MAX_INDEX:
            raise CheckpointError(
                f"{where}: {quoted(name)} shape {quoted(list(shape))[1:-1]} overflows: over 2^63 - 1 bytes"
            )
    return 0 if empty else total


def dtype_named(code: object, name: str, where: str) -> torch.dtype:
    """The torch dtype of a safetensors dtype code; an unknown one is refused by name, never reinterpreted."""
    dtype = DTYPES.get(code) if isinstance(code, str) else None
    if dtype is None:
        raise CheckpointError(
            f"{where}: {quoted(name)} has dtype {quoted(code, 40)}; minisd reads {', '.join(DTYPES)}; "
            "convert the file to one of these"
        )
    return dtype
