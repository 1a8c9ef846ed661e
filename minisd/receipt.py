"""Receipts: what made a picture, step by step, so that it can be made again and compared.

A receipt is part of the record inside a picture file. It names the model's files by sha256, the plan, the
machine, the versions, the digests of what a run passes through (`trail.py`), and the digest of the pixels;
and a digest of each field of the request and of itself, so that a field that was changed later is named at
once. By itself it proves that a picture can be reproduced, not who made it (`signing.py` does that).
docs/receipts.md has every field, and what is promised.
"""

from __future__ import annotations

import hashlib
import json
import platform
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import cache
from importlib import metadata
from pathlib import Path

import numpy
import PIL
import torch
from PIL import Image

from minisd import kernels as kernels_package
from minisd.hashes import Stamp
from minisd.kernels.choice import SWITCHES, Kernels
from minisd.kernels.conditions import interpreted
from minisd.kernels.configs import arch_of
from minisd.kernels.registry import OPERATIONS
from minisd.picture import digest
from minisd.placement import Plan
from minisd.trail import Mark

FORMAT = 2
SEALED = (
    "model",
    "files",
    "refiner",
    "beside",
    "plan",
    "versions",
    "machine",
    "schedule",
    "sigmas",
    "marks",
    "pixels",
    "adapters",
    "prompts",
    "tokens",
    "request",
    "shortage",
)


def canonical(value: object) -> str:
    """JSON of plain data, the same for equal values."""
    return json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":"))


def seal(value: object) -> str:
    """16 hexadecimal digits of sha256 of canonical JSON."""
    return hashlib.sha256(canonical(value).encode("utf-8", "surrogatepass")).hexdigest()[:16]


def versions(own: str) -> dict[str, str]:
    """Of the programs that bits may depend on."""
    found = {
        "minisd": own,
        "torch": torch.__version__,
        "numpy": numpy.__version__,
        "pillow": PIL.__version__,
        "python": platform.python_version(),
    }
    try:
        return found | {"triton": metadata.version("triton")}
    except metadata.PackageNotFoundError:
        return found


@cache
def processor() -> str:
    """The CPU's name as the system tells it."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
            named = (line.partition(":")[2].strip() for line in file if line.startswith("model name"))
            return next(named, platform.machine())
    except OSError:
        return platform.processor() or platform.machine()


def machine(plan: Plan) -> dict[str, str | int | bool]:
    """What of the machine bits may depend on, and the threads, on which they do not."""
    facts: dict[str, str | int | bool] = {
        "machine": platform.machine(),
        "cpu": processor(),
        "isa": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "float32_matmul": torch.get_float32_matmul_precision(),  # an application's choice, for all of torch
    }
    device = torch.device(plan.device.value)
    if device.type == "cuda":
        name, kind = torch.cuda.get_device_name(device), torch.cuda.get_device_capability(device)
        facts |= {"gpu": name, "capability": f"{kind[0]}.{kind[1]}"}
        facts |= {"cuda": str(torch.version.cuda or torch.version.hip)}
        facts |= {"cudnn": str(torch.backends.cudnn.version())}
        facts |= {"tf32_conv": torch.backends.cudnn.allow_tf32}
        facts |= {"tf32_matmul": torch.backends.cuda.matmul.allow_tf32}
    return facts


def plan_facts(plan: Plan) -> dict[str, object]:
    """Where each part ran, in what precision, with which kernels."""
    parts = {
        p.part: {
            "device": torch.device(p.device).type,
            "dtype": str(p.dtype.value).removeprefix("torch."),
            "residency": p.residency.value,
            **({"weights": p.quant.value} if p.layers else {}),
        }
        for p in plan.parts
    }
    return {
        "parts": parts,
        "kernels": kernel_facts(plan.kernels.value, plan.device.value),
        "attention": plan.attention.value,
        "batching": asdict(plan.batching.value),
        "channels_last": list(plan.channels_last.value),
        "vae_tile": plan.vae_tile.value,
    }


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


def named(files: Sequence[Stamp]) -> list[dict[str, str | None]]:
    """Files by name and sha256; None for one that is no longer what was read."""
    return [{"name": f.path.name, "sha256": f.sha256()} for f in files]


def receipt(
    image: Image.Image, index: int, marks: Sequence[Mark], files: Sequence[Stamp], plan: Plan, version: str
) -> dict[str, object]:
    """The receipt of picture `index` of a run, as plain data; `sealed` closes it over the whole record."""
    return {
        "format": FORMAT,
        "files": named(files),
        "plan": plan_facts(plan),
        "versions": versions(version),
        "machine": machine(plan),
        "marks": [[m.name, m.sigma, m.digest(index)] for m in marks],
        "pixels": digest(image.convert("RGB")),
        **({} if plan.shortage is None else {"shortage": plan.shortage}),
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
    """The record with the digests of its fields, as it is when read back from JSON."""
    plain = json.loads(json_text(record))
    return plain | {"seals": seals(plain)}


def json_text(record: Mapping[str, object]) -> str:
    """JSON as it is kept. Surrogates that stand alone, which UTF-8 cannot hold, are escaped."""
    text = json.dumps(record, ensure_ascii=False, sort_keys=True)
    return re.sub("[\ud800-\udfff]", lambda found: f"\\u{ord(found[0]):04x}", text)


def tampered(record: Mapping[str, object]) -> list[str]:
    """Fields that are not what they were when the record was sealed."""
    then, now = record.get("seals"), seals(record)
    if not isinstance(then, Mapping):
        return ["seals"]
    return sorted(name for name in {*then, *now} if then.get(name) != now.get(name))
