"""Memory that is freed: back to the system when a network has gone, or, as an option for drawing on a CPU,
kept for the next layer.

glibc gives large freed buffers back to the system and asks for them again at the next layer, and the system
hands each page out anew, filled with zeros. Kept, they cost no such page faults. It changes no bit.

Keeping sets something of the whole process, for as long as it runs; so it happens only where it is called
for: by an application, once and before it loads a model, or by `--keep-freed-memory` on the command line.
"""

from __future__ import annotations

import ctypes
import sys

from minisd.errors import PlanError

# of glibc's malloc.h; mallopt(3)
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4
NEVER, PAD = 2**31 - 1, 64 * 2**20  # bytes
kept = False  # whether it has been called for in this process


def keep_freed_memory() -> None:
    """From now on this process keeps what it frees (Linux with glibc). Calling twice is harmless.

    It spares page faults (an eighth of them are left: SD1.5 at 512 x 512 in bfloat16) for memory that the
    next stage of a drawing could have had: what encoding, sampling and decoding take adds up, and plans that
    are made afterwards count it so. Raises PlanError where the allocator is another.
    """
    global kept
    reason = why_not()
    if reason is not None:
        raise PlanError(f"freed memory cannot be kept: {reason}; leave it out")
    libc = ctypes.CDLL(None)
    settings = ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, NEVER), (M_TOP_PAD, PAD))
    if not all(libc.mallopt(what, value) == 1 for what, value in settings):
        raise PlanError("freed memory cannot be kept: glibc refuses the setting; leave it out")
    kept = True


def give_back() -> None:
    """Free memory goes to the system, unless it is to be kept. glibc holds on to holes between what is in
    use, and networks that come and go leave gigabytes of them; with another C library this does nothing."""
    if not kept and why_not() is None:
        ctypes.CDLL(None).malloc_trim(0)


def why_not() -> str | None:
    """The reason why this process cannot, or None."""
    if not sys.platform.startswith("linux"):
        return f"it is a setting of glibc, and this is {sys.platform}"
    try:
        libc = ctypes.CDLL(None)
    except OSError:
        return "it is a setting of glibc, and this Python is linked without a C library"
    if not hasattr(libc, "gnu_get_libc_version") or not hasattr(libc, "mallopt"):
        return "it is a setting of glibc, and this system has another C library"
    return None
