"""What malloc does with memory that has been freed: of this process, on Linux with glibc."""

from __future__ import annotations

import ctypes


def give_back() -> None:
    """Free memory goes back to the system. glibc keeps holes between what is in use, and networks that come
    and go leave gigabytes of them; elsewhere this does nothing."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
