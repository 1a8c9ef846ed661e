"""Safetensors files: reading tensors one at a time, and writing a file without holding it in memory.

Format: github.com/huggingface/safetensors README. The checks of what a file declares are in
`safetensors_header.py`.
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from minisd.errors import CheckpointError, quoted
from minisd.weights_loader.binary_file import BinaryFile, bytes_of, os_reason
from minisd.weights_loader.limits import MAX_HEADER, check_count, check_name
from minisd.weights_loader.safetensors_header import header_length, parse_header
from minisd.weights_loader.source import DTYPES, TensorInfo

_CODES = {dtype: code for code, dtype in DTYPES.items()}


class SafetensorsFile:
    """A `TensorSource` over one safetensors file. Opening reads the header only: 2,515 tensors of SDXL take
    some 30 ms.

    `tensors` is in the order of the data, so reading in that order reads the file from front to back.
    Thread-safe. Raises CheckpointError for everything that can be wrong with the file.
    """

    container = "safetensors"

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._file = BinaryFile(path)
        self.path = self._file.path
        try:
            where = self._file.name
            start = self._file.read(0, min(8, self._file.size))
            length = header_length(start, self._file.size, where)
            header = parse_header(self._file.read(8, length), self._file.size, where)
        except BaseException:
            self._file.close()
            raise
        self.tensors: Mapping[str, TensorInfo] = header.tensors
        self.metadata: Mapping[str, str] = header.metadata
        self._positions = header.positions

    def read(self, name: str, *, dtype: torch.dtype | None = None) -> Tensor:
        """A fresh contiguous CPU tensor, in the file's dtype or converted; beside it at most 4 MB are held.

        Raises CheckpointError when the file changed or was truncated since it was opened, KeyError for an
        unknown name.
        """
        info = self.tensors[name]
        count = info.nbytes // info.dtype.itemsize
        flat = self._file.read_elements(self._positions[name], count, info.dtype, dtype or info.dtype)
        return flat.view(info.shape)

    def close(self) -> None:
        self._file.close()


def write_safetensors(
    path: str | os.PathLike[str],
    tensors: Iterable[tuple[TensorInfo, Callable[[], Tensor]]],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Writes a file that appears complete or not at all; the callables are called in turn, one tensor in
    memory at a time.

    The bytes depend only on names, values and metadata: tensors lie by dtype size, largest first (so all are
    aligned), then by name. The header is padded with spaces to a multiple of 8. An existing file is replaced.
    What survives a power cut right after is the old file or the new one, whole.

    Raises ValueError for a name given twice or a tensor unlike its info, CheckpointError when the system
    refuses the file or a name or dtype does not fit the format.
    """
    path = Path(path)
    where = quoted(path.name)[1:-1]
    todo = sorted(tensors, key=lambda pair: (-pair[0].dtype.itemsize, pair[0].name))
    header = _header([info for info, _ in todo], metadata, where)
    part = path.with_name(
        f".{path.name[:64]}.{secrets.token_hex(8)}.part"
    )  # same folder: os.replace must not cross disks
    try:
        try:
            with open(part, "xb") as file:
                file.write(len(header).to_bytes(8, "little"))
                file.write(header)
                for info, make in todo:
                    file.write(_data(info, make()))
                file.flush()
                os.fsync(file.fileno())
            os.replace(part, path)
        except BaseException:
            part.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise CheckpointError(f"{where} cannot be written: {os_reason(error)}") from error


def _header(infos: list[TensorInfo], metadata: Mapping[str, str] | None, where: str) -> bytes:
    check_count(len(infos), where)
    entries: dict[str, object] = {}
    if metadata:
        for key, value in metadata.items():
            if not isinstance(key, str) or not isinstance(value, str):
                raise ValueError(
                    f"metadata {quoted(key)} must be a string under a string, got {type(value).__name__}"
                )
        entries["__metadata__"] = dict(sorted(metadata.items()))
    at = 0
    for info in infos:
        check_name(info.name, where)
        if info.name in entries or info.name == "__metadata__":
            raise ValueError(f"the name {quoted(info.name)} is given twice or reserved; names must be unique")
        if info.dtype not in _CODES:
            raise CheckpointError(
                f"{where}: {quoted(info.name)} is {info.dtype}; safetensors takes "
                f"{', '.join(_CODES.values())}"
            )
        offsets = [at, at := at + info.nbytes]
        entries[info.name] = {"dtype": _CODES[info.dtype], "shape": list(info.shape), "data_offsets": offsets}
    raw = json.dumps(entries, ensure_ascii=False, separators=(",", ":")).encode()
    raw += b" " * (-len(raw) % 8)
    if len(raw) > MAX_HEADER:
        raise CheckpointError(
            f"{where}: the header would take {len(raw):,} bytes; the limit is 100 MB; shorten the metadata"
        )
    return raw


def _data(info: TensorInfo, tensor: Tensor) -> memoryview:
    if tensor.dtype != info.dtype or tuple(tensor.shape) != info.shape:
        raise ValueError(
            f"{quoted(info.name)} was announced as {info.dtype} {list(info.shape)}, came as {tensor.dtype} "
            f"{list(tensor.shape)}"
        )
    flat = tensor.detach().to("cpu").contiguous().reshape(-1)
    return bytes_of(flat) if flat.numel() else memoryview(b"")
