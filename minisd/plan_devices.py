"""Facts about a device that a plan is decided by, each with where it comes from. Facts are data: a test may
invent a device.

torch's own interface (`torch.accelerator`) names CUDA, ROCm (which calls itself cuda), XPU and MPS alike.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

import torch

from minisd import freed_memory
from minisd.errors import PlanError, quoted

# Python, torch and the tokenizer, measured as resident memory (Linux, torch 2.13): 250 MB before the first
# weight; 150 MB of oneDNN's code in a run and of what malloc has not given back
PROCESS_BYTES = 400 * 10**6
UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
UNITS |= {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
UNITS |= {"KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}


@dataclass(frozen=True)
class DeviceFacts:
    """What a plan must know of a device.

    name: as torch spells it. free: bytes that may be used now, None where nobody can say. base: bytes that
    are taken before the first weight (on a CPU, Python and torch themselves). bf16: whether it computes in
    bfloat16 and why. host: weights lie in the same memory as the program's. reorders: convolutions copy
    input, weight and output into a layout of their own (oneDNN), which takes memory while they run. keeps:
    what a stage has taken stays with the program (`freed_memory.py`).
    """

    name: str
    free: int | None
    base: int
    bf16: bool
    why_bf16: str
    fp8: bool
    host: bool
    reorders: bool
    keeps: bool = False

    @property
    def kind(self) -> str:
        return torch.device(self.name).type


def device_facts(name: str) -> DeviceFacts:
    """Facts about a device of this machine, by a name that `placement.choose_device` has accepted."""
    kind = torch.device(name).type
    if kind in ("cpu", "meta"):
        good, why = cpu_bf16()
        return DeviceFacts(
            name,
            free=available_memory(),
            base=PROCESS_BYTES + (freed_memory.PAD if freed_memory.kept else 0),
            bf16=good,
            why_bf16=why,
            fp8=False,
            host=True,
            reorders=torch.backends.mkldnn.is_available(),
            keeps=freed_memory.kept,
        )
    free = accelerator_memory(name)
    bf16, why = True, f"{kind} computes in bfloat16"
    fp8 = False
    if kind == "cuda":
        bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
        major, minor = torch.cuda.get_device_capability(name)
        fp8 = (major, minor) >= (8, 9)
        why = f"compute capability {major}.{minor} {'has' if bf16 else 'has no'} bfloat16"
    elif kind == "mps":
        why = "Metal computes in bfloat16 from macOS 14 on, which this torch needs anyway"
    return DeviceFacts(
        name, free=free, base=0, bf16=bf16, why_bf16=why, fp8=fp8, host=kind == "mps", reorders=False
    )


def cpu_bf16() -> tuple[bool, str]:
    """Whether this CPU has instructions for bfloat16, and how that is known."""
    try:
        flags = next(
            x for x in open("/proc/cpuinfo", encoding="utf-8") if x.startswith(("flags", "Features"))
        )
    except (OSError, StopIteration):
        return False, "what this CPU can do is not told by the system; bfloat16 may be slow"
    found = [f for f in ("amx_bf16", "avx512_bf16", "bf16") if f in flags.split()]
    if found:
        return True, f"this CPU has {found[0]}"
    return False, "this CPU has no instructions for bfloat16: it computes slower than float32"


def available_memory() -> int | None:
    """Bytes that programs can still take on this machine, within the limit of its container."""
    found: list[int] = []
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            found += [int(line.split()[1]) * 1024 for line in file if line.startswith("MemAvailable:")]
    except OSError:
        try:
            found.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
        except (AttributeError, ValueError, OSError):
            return None
    for folder, most, used in (
        ("/sys/fs/cgroup", "memory.max", "memory.current"),
        ("/sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes"),
    ):
        try:
            with (
                open(f"{folder}/{most}", encoding="ascii") as a,
                open(f"{folder}/{used}", encoding="ascii") as b,
            ):
                found.append(int(a.read()) - int(b.read()))
        except (OSError, ValueError):  # no such limit, or "max"
            continue
    return max(0, min(found)) if found else None


def accelerator_memory(name: str) -> int | None:
    """Free bytes of an accelerator, or None where torch cannot say."""
    device = torch.device(name)
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if device.type == "xpu":
        return torch.xpu.mem_get_info(device)[0]
    if device.type == "mps":
        return torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory()
    return None


def parse_bytes(text: str | int) -> int:
    """A number of bytes from "6GiB", "6G" (both 2^30 each), "6GB" (10^9 each), "900 MB" or a plain number.

    Raises PlanError for anything else.
    """
    if isinstance(text, int):
        count = text
    else:
        found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", text)
        if found is None or found[2].upper() not in UNITS:
            raise PlanError(
                f"memory {quoted(text)} is no amount of memory; write it as 6GiB, 900MB or in bytes"
            )
        count = round(float(found[1]) * UNITS[found[2].upper()])
    if count < 10**6:
        raise PlanError(f"memory {quoted(text)} is less than a megabyte; write the unit, as in 6GiB")
    return count
