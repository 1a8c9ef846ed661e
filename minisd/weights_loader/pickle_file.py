"""Checkpoints of torch.save, zip (since torch 1.6) and legacy (five stacked pickles, then storages), as a
TensorSource.

The pickle is read as data (`pickle_reader.py`), the zip has one reading (`zip_archive.py`), and each tensor's
view is held against the bytes that are there before any is read. Format: torch/serialization.py `_save`,
`_legacy_save` (torch 2.x). Left out on purpose: the tar format of torch 0.1, TorchScript programs, sparse and
quantised tensors.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from minisd.errors import CheckpointError, listed, quoted
from minisd.weights_loader.binary_file import BinaryFile, strided
from minisd.weights_loader.limits import MAX_HEADER, MAX_INDEX, checked_nbytes
from minisd.weights_loader.pickle_entries import collect
from minisd.weights_loader.pickle_reader import Pickle, read_pickle
from minisd.weights_loader.pickle_values import StorageRef, TensorRef
from minisd.weights_loader.source import TensorInfo
from minisd.weights_loader.zip_archive import Record, read_records

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_SMALL = 65_536  # elements; an expanded view (one element read many times) of this size is harmless


@dataclass(frozen=True, slots=True)
class _Storage:
    """Where the elements of a storage lie; a zip record has a checksum to hold against them."""

    at: int
    nbytes: int
    record: Record | None


class PickleFile:
    """A `TensorSource` over a torch checkpoint. Nothing in the file is executed or imported.

    `state_dict` is entered when present, also several deep. Dicts below are flattened with dots
    (`image_proj.norm.weight`). `metadata` has the plain scalars around (`global_step`) as strings. `ignored`
    names the entries that are neither: optimizer states, callbacks, lists. `locations` names the devices that
    the tensors were saved from.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._file = BinaryFile(path)
        self.path = self._file.path
        self._lock = threading.Lock()
        self._verified: set[str] = set()  # records whose checksum was held against their bytes
        try:
            if self._file.size == 0:
                raise CheckpointError(f"{self._file.name} is empty (0 bytes); the download did not finish")
            zipped = self._file.read(0, min(4, self._file.size)) == b"PK\3\4"
            self.container = "torch zip" if zipped else "torch legacy"
            self._storages: dict[str, _Storage]
            if zipped:
                main, records, folder = self._open_zip()
                self._storages = self._zip_storages(main.storages, records, folder)
            else:
                main, keys, at = self._open_legacy()
                self._storages = self._legacy_storages(main.storages, keys, at)
            entries = collect(main.value, self._file.name)
            self._refs = entries.tensors
            self.tensors: Mapping[str, TensorInfo] = {
                n: self._checked(n, ref) for n, ref in self._refs.items()
            }
        except BaseException:
            self._file.close()
            raise
        self.metadata: Mapping[str, str] = entries.metadata
        self.ignored = tuple(entries.ignored)
        self.locations = tuple(sorted({ref.storage.location for ref in self._refs.values()}))

    def read(self, name: str, *, dtype: torch.dtype | None = None) -> Tensor:
        """A fresh contiguous CPU tensor, in the file's dtype or converted. Reads the span of the view, not
        the storage.

        The first read from a zip record holds all its bytes against their checksum. Raises CheckpointError
        when they differ or the file changed since it was opened, KeyError for an unknown name.
        """
        info, ref = self.tensors[name], self._refs[name]
        storage = self._storages[ref.storage.key]
        if storage.record is not None:
            self._verify(storage.record)
        start, count = _span(ref)
        at = storage.at + start * info.dtype.itemsize
        flat = self._file.read_elements(at, count, info.dtype, dtype or info.dtype)
        return strided(flat, info.shape, _counts(ref.stride))

    def close(self) -> None:
        self._file.close()

    def _verify(self, record: Record) -> None:
        with self._lock:
            if record.name in self._verified:
                return
        if self._file.crc32(record.at, record.nbytes) != record.crc:
            raise CheckpointError(
                f"{self._file.name}: the bytes of {quoted(record.name)} do not match their CRC-32: the file "
                "is damaged; "
                "download it again"
            )
        with self._lock:
            self._verified.add(record.name)

    def _open_zip(self) -> tuple[Pickle, dict[str, Record], str]:
        """The value of data.pkl, all records, and the folder they lie in."""
        records = read_records(self._file)
        mains = [name for name in records if name.rsplit("/", 1)[-1] == "data.pkl"]
        if len(mains) != 1:
            kind = "a NumPy .npz archive" if any(n.endswith(".npy") for n in records) else "a zip archive"
            raise CheckpointError(
                f"{self._file.name} is {kind} with {len(mains)} records named data.pkl "
                f"({listed(mains or list(records), 3)}); "
                "a torch checkpoint has exactly one"
            )
        folder = mains[0][: -len("data.pkl")]
        if folder + "constants.pkl" in records:
            raise CheckpointError(
                f"{self._file.name} is a TorchScript program, not weights; save its state_dict() instead"
            )
        order = records.get(folder + "byteorder")
        if order is not None and self._small_record(order, 16) != b"little":
            raise CheckpointError(
                f"{self._file.name} was saved on a big-endian machine; convert it there with safetensors"
            )
        data = self._small_record(records[mains[0]], MAX_HEADER)
        where = f"{self._file.name}: {quoted(mains[0])[1:-1]}"
        main = read_pickle(lambda at, count: data[at : at + count], 0, len(data), where)
        if main.end != len(data):
            raise CheckpointError(f"{where} has {len(data) - main.end:,} bytes after its end; refusing")
        return main, records, folder

    def _small_record(self, record: Record, limit: int) -> bytes:
        if record.nbytes > limit:
            raise CheckpointError(
                f"{self._file.name}: {quoted(record.name)} is {record.nbytes:,} bytes; the limit is {limit:,}"
            )
        self._verify(record)
        return self._file.read(record.at, record.nbytes)

    def _zip_storages(
        self, storages: dict[str, StorageRef], records: dict[str, Record], folder: str
    ) -> dict[str, _Storage]:
        found: dict[str, _Storage] = {}
        for key, storage in storages.items():
            record = records.get(f"{folder}data/{key}")
            if record is None:
                raise CheckpointError(
                    f"{self._file.name}: the record of storage {quoted(key)} is missing; truncated?"
                )
            if record.nbytes != storage.numel * storage.dtype.itemsize:
                raise CheckpointError(
                    f"{self._file.name}: storage {quoted(key)} declares {storage.numel:,} elements of "
                    f"{storage.dtype}, its "
                    f"record has {record.nbytes:,} bytes; refusing"
                )
            found[key] = _Storage(record.at, record.nbytes, record)
        return found

    def _open_legacy(self) -> tuple[Pickle, list[object], int]:
        """The value, the keys of the storages in file order, and the byte where these begin."""
        where, size = self._file.name, self._file.size
        magic = read_pickle(self._file.read, 0, size, where)
        if magic.value != _LEGACY_MAGIC:
            raise CheckpointError(
                f"{where} is a plain pickle, not a checkpoint of torch.save; nothing was executed. "
                "Open it where you trust it and save its tensors with safetensors"
            )
        protocol = read_pickle(self._file.read, magic.end, size, where)
        system = read_pickle(self._file.read, protocol.end, size, where)
        little = isinstance(system.value, dict) and system.value.get("little_endian") is True
        if protocol.value != 1001 or not little:
            raise CheckpointError(
                f"{where}: a legacy checkpoint of protocol {quoted(protocol.value, 40)} or of a big-endian "
                "machine; "
                "expected 1001, little-endian: load and save it again with the torch that wrote it"
            )
        main = read_pickle(self._file.read, system.end, size, where)
        keys = read_pickle(self._file.read, main.end, size, where)
        if not isinstance(keys.value, list):
            raise CheckpointError(
                f"{where}: the list of storages is a {type(keys.value).__name__}; the file is damaged"
            )
        return main, keys.value, keys.end

    def _legacy_storages(
        self, storages: dict[str, StorageRef], keys: list[object], at: int
    ) -> dict[str, _Storage]:
        """Each storage is its number of elements (i64) and then these. The element's type is known from the
        tensors.
        """
        where, found = self._file.name, dict[str, _Storage]()
        for key in keys:
            declared = storages.get(key) if isinstance(key, str) else None
            if declared is None or not isinstance(key, str) or key in found:
                raise CheckpointError(
                    f"{where}: the storage {quoted(key)} is listed twice or belongs to no tensor"
                )
            numel = int.from_bytes(self._file.read(at, 8), "little", signed=True)
            nbytes = numel * declared.dtype.itemsize
            if numel != declared.numel:
                raise CheckpointError(
                    f"{where}: storage {quoted(key)} declares {declared.numel:,} elements, but {numel:,} "
                    "are stored; refusing"
                )
            if nbytes > self._file.size - at - 8:
                raise CheckpointError(
                    f"{where}: storage {quoted(key)} needs {nbytes:,} bytes beyond the end: truncated"
                )
            found[key] = _Storage(at + 8, nbytes, None)
            at += 8 + nbytes
        missing = [key for key in storages if key not in found]
        if missing:
            raise CheckpointError(f"{where}: the storages {listed(missing)} are missing; the file is damaged")
        if at != self._file.size:
            raise CheckpointError(f"{where}: {self._file.size - at:,} bytes after the last storage; refusing")
        return found

    def _checked(self, name: str, ref: TensorRef) -> TensorInfo:
        """The tensor's declaration, once its view lies inside its storage."""
        where = self._file.name
        checked_nbytes(name, ref.shape, ref.dtype, where)
        shape, stride = _counts(ref.shape), ref.stride
        if len(stride) != len(shape) or any(type(s) is not int or not 0 <= s <= MAX_INDEX for s in stride):
            raise CheckpointError(
                f"{where}: {quoted(name)} has strides {quoted(list(stride))} for shape {list(shape)}; "
                "refusing"
            )
        start, count = _span(ref)
        room = self._storages[ref.storage.key].nbytes // ref.dtype.itemsize
        info = TensorInfo(name, ref.dtype, shape)
        elements = info.nbytes // ref.dtype.itemsize
        if start < 0 or start + count > room:
            raise CheckpointError(
                f"{where}: {quoted(name)} views {elements:,} elements of a {room:,}-element storage, up to "
                "element "
                f"{start + count:,} from {start:,}; refusing"
            )
        if elements > _SMALL and _overlaps(shape, _counts(stride)):
            raise CheckpointError(
                f"{where}: {quoted(name)} views {elements:,} elements of a {room:,}-element storage with "
                "overlapping strides "
                f"{list(stride)}; refusing"
            )
        return info


def _counts(values: tuple[object, ...]) -> tuple[int, ...]:
    return tuple(v for v in values if isinstance(v, int))  # all are: checked when the file was opened


def _span(ref: TensorRef) -> tuple[int, int]:
    """First element of the storage that the view touches, and how many from there to its last."""
    shape = _counts(ref.shape)
    if 0 in shape:
        return ref.offset, 0
    return ref.offset, 1 + sum((n - 1) * s for n, s in zip(shape, _counts(ref.stride), strict=True))


def _overlaps(shape: tuple[int, ...], stride: tuple[int, ...]) -> bool:
    """Whether two indices may meet in one element: no if each stride steps over all that the smaller ones
    span.
    """
    reach = 0
    for step, size in sorted((s, n) for s, n in zip(stride, shape, strict=True) if n > 1):
        if step <= reach:
            return True
        reach += step * (size - 1)
    return False
