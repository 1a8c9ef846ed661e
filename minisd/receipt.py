"""Receipts: what made a picture, step by step, so that it can be made again and compared.

A receipt is part of the record inside a picture file. It names the model's files by sha256, the plan, the
versions, the digests of what a run passes through (`trail.py`), and the digest of the pixels; and a digest of
each field of the request and of itself, so that a field that was changed later is named at once. It is not
signed: it proves that a picture can be reproduced, not who made it (`signing.py` does that).
"""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import metadata
from pathlib import Path

import numpy
import PIL
import torch
from PIL import Image

from minisd import kernels as kernels_package
from minisd.hashes import file_sha256
from minisd.kernels.choice import SWITCHES, Kernels
from minisd.kernels.conditions import interpreted
from minisd.kernels.configs import arch_of
from minisd.kernels.registry import OPERATIONS
from minisd.picture import digest
from minisd.placement import Plan
from minisd.trail import Mark

FORMAT = 1
SEALED = (
    "model",
    "files",
    "plan",
    "versions",
    "schedule",
    "sigmas",
    "marks",
    "pixels",
    "adapters",
    "request",
)


def canonical(value: object) -> str:
    """JSON of plain data, the same for equal values."""
    return json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":"))


def seal(value: object) -> str:
    """16 hexadecimal digits of sha256 of canonical JSON."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()[:16]


def versions(own: str) -> dict[str, str]:
    """Of what bits may depend on."""
    return {
        "minisd": own,
        "torch": torch.__version__,
        "numpy": numpy.__version__,
        "pillow": PIL.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "isa": torch.backends.cpu.get_cpu_capability(),
    }


def plan_facts(plan: Plan) -> dict[str, object]:
    """Where each part ran, in what precision, and what computed its operations."""
    parts = {p.part: f"{p.device} {str(p.dtype.value).removeprefix('torch.')}" for p in plan.parts}
    kernels = kernel_facts(plan.kernels.value, plan.device.value)
    return {"parts": parts, "attention": plan.attention.value, "kernels": kernels}


def kernel_facts(kernels: Kernels, device: str) -> dict[str, object]:
    """The implementation of every operation and the restructurings that are on. Where Triton's kernels are
    among them, also what decides their bits: its version, the architecture, whether it interpreted, and the
    digest of our sources, whose tables hold the configuration for each."""
    operations = {op: getattr(kernels, op) for op in OPERATIONS}
    facts: dict[str, object] = {
        "operations": operations,
        "restructured": [name for name in SWITCHES if getattr(kernels, name)],
    }
    if any(name.startswith("triton") for name in operations.values()):
        facts["triton"] = {
            "version": metadata.version("triton"),
            "arch": arch_of(torch.device(device)),
            "interpreted": interpreted(),
            "sources": triton_sources(),
        }
    return facts


@cache
def triton_sources() -> str:
    """sha256 of the kernels' files and of their configurations."""
    folder = Path(kernels_package.__file__).parent
    whole = hashlib.sha256()
    for path in sorted([*folder.glob("triton_*.py"), folder / "configs.py"]):
        whole.update(path.name.encode() + b"\0" + path.read_bytes())
    return whole.hexdigest()


def receipt(
    image: Image.Image, index: int, marks: Sequence[Mark], files: Sequence[Path], plan: Plan, version: str
) -> dict[str, object]:
    """The receipt of picture `index` of a run, as plain data; `sealed` closes it over the whole record."""
    return {
        "format": FORMAT,
        "files": [{"name": p.name, "sha256": file_sha256(p)} for p in files],
        "plan": plan_facts(plan),
        "versions": versions(version),
        "marks": [[m.name, m.sigma, m.digest(index)] for m in marks],
        "pixels": digest(image.convert("RGB")),
    }


def seals(record: Mapping[str, object]) -> dict[str, str]:
    """{field: its digest} of a record: of each field of the request, and of each other part."""
    own = record.get("receipt")
    parts = {**record, **own} if isinstance(own, Mapping) else dict(record)
    out = {name: seal(parts[name]) for name in SEALED if name in parts and name != "request"}
    request = record.get("request")
    if isinstance(request, Mapping):
        out |= {f"request.{k}": seal(v) for k, v in request.items()}
        out["request"] = seal(sorted(request))
    return out


def sealed(record: dict[str, object]) -> dict[str, object]:
    """The record with the digests of its fields."""
    return record | {"seals": seals(record)}


def tampered(record: Mapping[str, object]) -> list[str]:
    """Fields that are not what they were when the record was sealed."""
    then, now = record.get("seals"), seals(record)
    if not isinstance(then, Mapping):
        return ["seals"]
    return sorted(name for name in {*then, *now} if then.get(name) != now.get(name))
