"""Compile the sources beside this file and load them: once for each content, kept in the user's cache folder.

A shared library is code, so the folder must belong to the user and be writable by nobody else; where none
can be had, the library lives in a private temporary folder for as long as it takes to load it.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import stat
import subprocess
import tempfile
from pathlib import Path

import torch

SOURCES = ("common.h", "attention.cpp", "rows.cpp")
FLAGS = (
    *("-O3", "-std=c++17", "-shared", "-fPIC", "-pthread"),
    "-ffp-contract=off",  # products and sums are joined where the source says so, and nowhere else
    *("-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mavx512bf16", "-mfma"),
)
HERE = Path(__file__).parent


def compiler() -> str | None:
    """The path of a C++ compiler: $CXX, or the first of the usual names; None if there is none."""
    named = os.environ.get("CXX")
    return next(
        (
            found
            for name in ([named] if named else ["c++", "g++", "clang++"])
            if (found := shutil.which(name))
        ),
        None,
    )


def missing() -> str | None:
    """Why these kernels run nowhere on this machine, or None."""
    if (
        platform.machine().lower() not in ("x86_64", "amd64")
        or "AVX512" not in torch.backends.cpu.get_cpu_capability()
    ):
        return "this CPU has no AVX-512, or ATEN_CPU_CAPABILITY hides it"
    if compiler() is None and not cached().exists():
        return "no C++ compiler is installed (c++, g++, clang++ or $CXX) to build it with"
    return None


@functools.cache
def bfloat16_products() -> bool:
    """Whether this CPU multiplies bfloat16 (VDPBF16PS)."""
    asked = getattr(torch.cpu, "_is_avx512_bf16_supported", None)  # torch has no public name for it
    return bool(asked is not None and asked())


def fingerprint() -> str:
    """sha256 of sources and flags: what the bits of these kernels follow from, besides the compiler."""
    whole = hashlib.sha256(" ".join(FLAGS).encode())
    for name in SOURCES:
        whole.update((HERE / name).read_bytes())
    return whole.hexdigest()


def cached() -> Path:
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "minisd" / "kernels" / f"avx512-{fingerprint()[:20]}.so"


def private(folder: Path) -> bool:
    """Make the folder; whether it is this user's alone to write."""
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        found = folder.stat()
    except OSError:
        return False
    others = stat.S_IWGRP | stat.S_IWOTH
    return found.st_uid == os.getuid() and not found.st_mode & others and os.access(folder, os.W_OK)


def compile_to(target: Path) -> None:
    """Raises ValueError with what the compiler said."""
    program = compiler()
    if program is None:
        raise ValueError("avx512: no C++ compiler is installed (c++, g++, clang++ or $CXX) to build it with")
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        made = Path(folder) / target.name
        sources = [str(HERE / name) for name in SOURCES if name.endswith(".cpp")]
        done = subprocess.run([program, *FLAGS, "-o", str(made), *sources], capture_output=True, text=True)
        if done.returncode:
            line = next((x for x in done.stderr.splitlines() if "error" in x), done.stderr[:200].strip())
            raise ValueError(f"avx512: {program} does not build it ({line}); name another compiler in CXX")
        os.replace(made, target)  # whole or not at all, whoever builds at the same time


@functools.cache
def library() -> ctypes.CDLL:
    """The kernels, built if they are not there yet."""
    target = cached()
    if private(target.parent):
        if not target.exists():
            compile_to(target)
        return ctypes.CDLL(str(target))
    with tempfile.TemporaryDirectory() as folder:  # a loaded library outlives its file
        target = Path(folder) / target.name
        compile_to(target)
        return ctypes.CDLL(str(target))
