"""A regular file held open and read at positions: by several threads, without mapping it, noticing when it
changes.

A mapped file that another process truncates kills the reader with SIGBUS; a read that comes up short is an
error one can report. So minisd reads, and copies once.
"""

from __future__ import annotations

import errno
import math
import os
import stat
import threading
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from io import FileIO
from pathlib import Path

import torch
from torch import Tensor

from minisd.errors import CheckpointError, quoted

CHUNK = 4 * 2**20  # bytes: staging buffer of conversions and checksums; larger ones fragment the heap
_ONE_CALL = 2**30  # Linux moves at most 2^31 - 4096 bytes per read


def os_reason(error: OSError) -> str:
    """`Permission denied (EACCES)`: what the system said, with the name people search for."""
    return f"{error.strerror or error} ({errno.errorcode.get(error.errno or 0, 'no errno')})"


class BinaryFile:
    """An open regular file. `size` in bytes and the modification time are those of the opening; every read
    checks them.

    Raises CheckpointError for a missing file, a directory, FIFO, device or socket, and when the system
    refuses.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.name = quoted(self.path.name or str(path))[1:-1]  # escaped, for messages
        self._lock = threading.Lock()
        self._readers = 0
        self._closing = False
        try:
            _check_regular(os.stat(self.path), self.name)
            self._file = FileIO(self.path, "r", opener=_open_without_waiting)
        except FileNotFoundError:
            raise CheckpointError(f"{quoted(str(path), 400)} does not exist; check the path") from None
        except OSError as error:
            raise CheckpointError(f"{self.name} cannot be opened: {os_reason(error)}") from error
        except ValueError as error:  # NUL in a path
            raise CheckpointError(f"{quoted(str(path))} is no path: {error}") from None
        status = os.fstat(self._file.fileno())
        try:
            _check_regular(status, self.name)  # again: the name may have come to mean another file
        except CheckpointError:
            self._file.close()
            raise
        self.size = status.st_size
        self._mtime = status.st_mtime_ns

    def read(self, at: int, count: int) -> bytes:
        """Bytes at..at + count. The caller has bounded `count`; beyond the end is an error."""
        buffer = bytearray(max(0, min(count, self.size - at)))
        if len(buffer) < count:
            raise CheckpointError(
                f"{self.name} ends at byte {self.size:,}; {at + count:,} were expected: truncated"
            )
        self.read_into(at, memoryview(buffer))
        return bytes(buffer)

    def read_into(self, at: int, target: memoryview) -> None:
        """Fills `target` (bytes, writable) from position `at`. Raises CheckpointError on a short read or a
        changed file.
        """
        with self._held() as file:
            self._check_unchanged(file)
            done = 0
            try:
                while done < len(target):
                    count = self._read_once(file, at + done, target[done : done + _ONE_CALL])
                    if count == 0:
                        raise CheckpointError(
                            f"{self.name} ends at byte {at + done:,}: it was truncated while open"
                        )
                    done += count
            except OSError as error:
                raise CheckpointError(
                    f"{self.name} failed at byte {at + done:,}: {os_reason(error)}"
                ) from error
            self._check_unchanged(file)

    def read_elements(self, at: int, count: int, source: torch.dtype, target: torch.dtype) -> Tensor:
        """`count` little-endian elements of dtype `source` at byte `at`, as a fresh CPU tensor [count] of
        dtype `target`.

        A conversion goes through a buffer of 4 MB, so the peak is the result and that. No alignment is
        assumed.
        """
        out = torch.empty(count, dtype=target, device="cpu")  # whatever default device the caller has set
        if source == target:
            if count:
                self.read_into(at, bytes_of(out))
                _check_bool(out, self.name)
            return out
        step = CHUNK // source.itemsize
        staging = torch.empty(min(step, count), dtype=source, device="cpu")
        for start in range(0, count, step):
            part = staging[: min(step, count - start)]
            self.read_into(at + start * source.itemsize, bytes_of(part))
            _check_bool(part, self.name)
            out[start : start + len(part)].copy_(part)
        return out

    def crc32(self, at: int, count: int) -> int:
        """CRC-32 of bytes at..at + count, in chunks."""
        value, buffer = 0, memoryview(bytearray(min(CHUNK, count)))
        for start in range(at, at + count, CHUNK):
            part = buffer[: min(CHUNK, at + count - start)]
            self.read_into(start, part)
            value = zlib.crc32(part, value)
        return value

    def close(self) -> None:
        """Gives the file back once reads under way have ended; closing twice is harmless."""
        with self._lock:
            self._closing = True
            if not self._readers:
                self._file.close()

    @contextmanager
    def _held(self) -> Iterator[FileIO]:
        # Closing under a reader would free a descriptor number that the system may give to another file.
        with self._lock:
            if self._closing:
                raise CheckpointError(f"{self.name} was closed; open it again")
            self._readers += 1
        try:
            yield self._file
        finally:
            with self._lock:
                self._readers -= 1
                if self._closing and not self._readers:
                    self._file.close()

    def _read_once(self, file: FileIO, at: int, target: memoryview) -> int:
        if hasattr(os, "preadv"):
            return os.preadv(file.fileno(), [target], at)
        with self._lock:  # Windows: one position per file
            file.seek(at)
            return file.readinto(target) or 0

    def _check_unchanged(self, file: FileIO) -> None:
        status = os.fstat(file.fileno())
        if (status.st_size, status.st_mtime_ns) != (self.size, self._mtime):
            raise CheckpointError(
                f"{self.name} changed while open ({self.size:,} bytes then, {status.st_size:,} now); open "
                "it again"
            )


def strided(flat: Tensor, shape: tuple[int, ...], stride: tuple[int, ...]) -> Tensor:
    """The view of `flat` [n] with this shape and strides (in elements), as a contiguous tensor; `flat` itself
    if it is that.
    """
    if not math.prod(shape):
        return flat.new_empty(shape)
    view = flat.as_strided(shape, stride)
    return (
        view
        if view.is_contiguous() and view.numel() == flat.numel()
        else view.clone(memory_format=torch.contiguous_format)
    )


def _open_without_waiting(path: str, flags: int) -> int:
    return os.open(
        path, flags | getattr(os, "O_NONBLOCK", 0)
    )  # a FIFO put here after the check must not block


def _check_regular(status: os.stat_result, name: str) -> None:
    mode = status.st_mode
    if stat.S_ISREG(mode):
        return
    kinds = {
        stat.S_IFDIR: "a directory",
        stat.S_IFIFO: "a FIFO",
        stat.S_IFCHR: "a device",
        stat.S_IFBLK: "a device",
        stat.S_IFSOCK: "a socket",
    }
    raise CheckpointError(
        f"{name} is {kinds.get(stat.S_IFMT(mode), 'no regular file')}; expected a checkpoint file"
    )


def bytes_of(flat: Tensor) -> memoryview:
    """The memory of a CPU tensor [n] as bytes, shared."""
    return flat.view(torch.uint8).numpy().data


def _check_bool(tensor: Tensor, name: str) -> None:
    if tensor.dtype == torch.bool and tensor.numel() and int(tensor.view(torch.uint8).max()) > 1:
        raise CheckpointError(f"{name}: a BOOL tensor holds bytes other than 0 and 1; the file is damaged")
