"""What a Triton kernel takes on a GPU, without one: compiled ahead of time for a named architecture.

Triton asks its driver for a target, a device number and a stream before it compiles. `compiling` answers
with numbers and hands every launch to the compiler instead of to a device, so the wrappers of a kernel run as
they are, on CPU tensors, and the specialisations (divisible by 16, equal to 1) are those a GPU would see.
Registers and spills come from the vendor's own tools that Triton's wheel carries.

It changes Triton's own classes while it works: run it in a process of its own (`python -m minisd.lab.aot`).
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import KernelInterface

TARGETS: dict[str, GPUTarget] = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "sm_120": GPUTarget("cuda", 120, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
# of one multiprocessor: registers, bytes of shared memory, bytes of it for one program, warps
LIMITS = {
    "sm_80": (65536, 164 << 10, 163 << 10, 64),
    "sm_90": (65536, 228 << 10, 227 << 10, 64),
    "sm_100": (65536, 228 << 10, 227 << 10, 64),
    "sm_120": (65536, 100 << 10, 99 << 10, 48),
}
AMD_SHARED = 64 << 10
# in the vendor's assembly: products on matrix units, loads that run ahead, traffic of spilled registers
OPCODES = ("HGMMA", "QGMMA", "IGMMA", "HMMA", "IMMA", "UTCHMMA", "UTMALDG", "LDGSTS", "LDL", "STL")
MATRIX = ("HGMMA", "QGMMA", "IGMMA", "HMMA", "IMMA", "UTCHMMA")


@dataclass(frozen=True)
class Resources:
    """Of one compiled kernel. shared: bytes. spills: instructions that move spilled registers. programs: how
    many of them a multiprocessor holds, 0 where unknown. fits: whether shared memory suffices. matrix:
    instructions of matrix units by name. ahead: loads that run ahead of their use."""

    kernel: str
    target: str
    registers: int
    spills: int
    shared: int
    warps: int
    programs: int
    fits: bool
    matrix: dict[str, int]
    ahead: int

    def to_dict(self) -> dict[str, object]:
        return asdict(self)


class Offline:
    """A driver that knows the target and nothing else."""

    def __init__(self, target: str) -> None:
        self.target = target

    def get_current_target(self) -> GPUTarget:
        return TARGETS[self.target]

    def get_current_device(self) -> int:
        return 1000 + list(TARGETS).index(self.target)  # kernels are cached by device number

    def get_current_stream(self, device: int = 0) -> int:
        return 0

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")


@contextmanager
def compiling(target: str, made: list[Any]) -> Iterator[None]:
    """Inside: `kernel[grid](...)` compiles for the target and adds the compiled kernel to `made`."""
    launch = KernelInterface.__getitem__

    def compile_instead(self: Any, grid: object) -> Callable[..., None]:
        return lambda *arguments, **named: made.append(self.run(*arguments, grid=grid, warmup=True, **named))

    offline: Any = Offline(target)  # of a driver it has what compiling asks
    triton.runtime.driver.set_active(offline)
    KernelInterface.__getitem__ = compile_instead  # pyright: ignore[reportAttributeAccessIssue]
    try:
        yield
    finally:
        KernelInterface.__getitem__ = launch


def resources(target: str, call: Callable[[], object]) -> list[Resources]:
    """Of every kernel that `call` launches, compiled for the target. Raises what the compiler raises."""
    made: list[Any] = []
    with compiling(target, made):
        call()
    return [read(kernel, target) for kernel in made]


def read(kernel: Any, target: str) -> Resources:
    return read_nvidia(kernel, target) if target.startswith("sm") else read_amd(kernel, target)


def read_nvidia(kernel: Any, target: str) -> Resources:
    folder = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        usage = tool(folder / "cuobjdump", "--dump-resource-usage", file.name)
        assembly = tool(folder / "nvdisasm", "-c", file.name)
    found = re.search(r"REG:(\d+)", usage)
    registers = int(found[1]) if found else 0
    counts = {name: len(re.findall(rf"\b{name}", assembly)) for name in OPCODES}
    shared, warps = kernel.metadata.shared, kernel.metadata.num_warps
    file_size, memory, for_one, most = LIMITS[target]
    of_warp = max(1, (registers + 7) // 8 * 8 * 32)  # registers come in eights
    return Resources(
        kernel=kernel.metadata.name,
        target=target,
        registers=registers,
        spills=counts["LDL"] + counts["STL"],
        shared=shared,
        warps=warps,
        programs=min(file_size // (of_warp * warps), memory // (shared + 1024), most // warps),
        fits=shared <= for_one,
        matrix={name: counts[name] for name in MATRIX if counts[name]},
        ahead=counts["UTMALDG"] + counts["LDGSTS"],
    )


def read_amd(kernel: Any, target: str) -> Resources:
    text = kernel.asm["amdgcn"]

    def number(name: str) -> int:
        found = re.search(rf"\.{name}:\s*(\d+)", text)
        return int(found[1]) if found else 0

    names = re.findall(r"v_mfma_\w+", text)
    return Resources(
        kernel=kernel.metadata.name,
        target=target,
        registers=number("vgpr_count"),
        spills=number("vgpr_spill_count"),
        shared=kernel.metadata.shared,
        warps=kernel.metadata.num_warps,
        programs=0,
        fits=kernel.metadata.shared <= AMD_SHARED,
        matrix={name: names.count(name) for name in sorted(set(names))},
        ahead=len(re.findall(r"\b(?:buffer|global)_load_lds", text)),
    )


def tool(program: Path, *arguments: str) -> str:
    return subprocess.run([program, *arguments], capture_output=True, text=True, check=True).stdout
