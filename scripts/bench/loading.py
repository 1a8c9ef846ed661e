"""Memory and time of opening and loading: an SDXL file of 6.9 GB looked at, an SD1.5 file of 2.1 GB loaded.

The files are made here: the released names, shapes and dtypes; SDXL with a hole for data (inspecting reads
none), SD1.5 with random weights. Peak resident memory is VmHWM of a fresh process.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch

from minisd.weights_loader.safetensors_file import write_safetensors
from minisd.weights_loader.source import DTYPES, TensorInfo
from scripts.bench.common import PEAK, fresh, median, record
from tests.weights_loader.manifests import manifest

INSPECT = (
    PEAK
    + """
import sys, time, torch
import minisd.weights_loader.checkpoint
before, begun = resident(), time.perf_counter()
report = minisd.weights_loader.checkpoint.open_checkpoint(sys.argv[1]).report()
str(report)
seconds, more = time.perf_counter() - begun, peak() - before
print(json.dumps({"open": seconds, "more": more, "sdxl": int(report.family == "sdxl")}))
"""
)
COMMAND = (
    PEAK
    + """
import sys, io, contextlib
from minisd.cli import main
with contextlib.redirect_stdout(io.StringIO()):
    assert main(["inspect", sys.argv[1], "--json"]) == 0
print(json.dumps({"peak": peak()}))
"""
)
LOAD = (
    PEAK
    + """
import sys, time, torch, minisd
import minisd.model
before, begun = resident(), time.perf_counter()
engine = minisd.load(sys.argv[1], dtype=sys.argv[2], vae_dtype=sys.argv[2])
weights = sum(p.weight_bytes for p in engine.plan.parts)
print(json.dumps({"load": time.perf_counter() - begun, "peak": peak(), "before": before, "weights": weights}))
"""
)


def write(path: Path, name: str, dtype: str, random: bool) -> None:
    """A file of the manifest's tensors, all floats in `dtype`."""
    target = DTYPES[dtype]
    tensors = []
    for key, (code, *shape) in manifest(name)["tensors"].items():
        kind = target if DTYPES[code].is_floating_point else DTYPES[code]
        tensors.append(TensorInfo(key, kind, tuple(shape)))
    generator = torch.Generator().manual_seed(0)

    def data(info: TensorInfo) -> torch.Tensor:
        if not random or not info.dtype.is_floating_point:
            return torch.zeros(info.shape, dtype=info.dtype)
        return (torch.randn(info.shape, generator=generator) * 0.02).to(info.dtype)

    write_safetensors(path, [(info, (lambda info=info: data(info))) for info in tensors], {"format": "pt"})


def main(rounds: int = 5) -> None:
    figures: dict[str, object] = {}
    with tempfile.TemporaryDirectory() as folder:
        sdxl = Path(folder) / "wan-flux-lens.safetensors"
        write(sdxl, "sdxl-base", "F16", random=False)
        looks = [fresh(INSPECT, str(sdxl)) for _ in range(rounds)]
        commands = [fresh(COMMAND, str(sdxl)) for _ in range(rounds)]
        assert all(x["sdxl"] for x in looks), "a file with SDXL keys is SDXL whatever its name"
        figures["SDXL file, bytes"] = sdxl.stat().st_size
        figures["open and report, s"] = median([x["open"] for x in looks])
        figures["open and report, more resident MB"] = median([x["more"] for x in looks]) / 1e6
        figures["minisd inspect as a command, s"] = median([x["seconds"] for x in commands])
        figures["minisd inspect as a command, peak MB"] = median([x["peak"] for x in commands]) / 1e6
        sdxl.unlink()
        sd15 = Path(folder) / "sd15.safetensors"
        write(sd15, "sd15", "F16", random=True)
        for dtype in ("bfloat16", "float32"):
            runs = [fresh(LOAD, str(sd15), dtype) for _ in range(3)]
            weights = runs[0]["weights"]
            figures[f"SD1.5 fp16 file to {dtype}, weights GB"] = weights / 1e9
            figures[f"SD1.5 fp16 file to {dtype}, s"] = median([x["load"] for x in runs])
            figures[f"SD1.5 fp16 file to {dtype}, peak GB"] = median([x["peak"] for x in runs]) / 1e9
            figures[f"SD1.5 fp16 file to {dtype}, peak over weights"] = (
                median([x["peak"] for x in runs]) / weights
            )
            more = median([x["peak"] - x["before"] for x in runs]) / weights
            figures[f"SD1.5 fp16 file to {dtype}, peak without torch itself over weights"] = more
    for name, value in figures.items():
        print(f"{name:<76}{value:14.3f}")
    print(record("loading", figures))


if __name__ == "__main__":
    main()
