"""What all benchmarks share: the machine in words, fresh processes with their peak memory, interleaved
rounds, medians."""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

from scripts import plot_bench

RESULTS = Path(__file__).parent / "results"
ROOT = Path(__file__).parent.parent.parent


def machine() -> dict[str, object]:
    """Processor, cores, memory, versions, commit and load: without these a figure means nothing."""
    cpu = next(
        (x for x in Path("/proc/cpuinfo").read_text().splitlines() if x.startswith("model name")), "?:?"
    )
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=ROOT)
    names = ("torch", "diffusers", "transformers", "safetensors", "tokenizers", "numpy", "minisd")
    found = {}
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "absent"
    return {
        "cpu": cpu.split(":")[1].strip(),
        "cores": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "python": platform.python_version(),
        "versions": found,
        "commit": commit.stdout.strip(),
        "date": time.strftime("%Y-%m-%d %H:%M"),
        "load_before": [round(v, 2) for v in os.getloadavg()],
    }


def fresh(code: str, *args: str) -> dict[str, float]:
    """Run Python code in a new process. Returns its wall seconds and what it wrote as JSON in its last line,
    if anything."""
    begun = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code, *args], capture_output=True, text=True, cwd=ROOT)
    seconds = time.perf_counter() - begun
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    last = done.stdout.strip().splitlines()[-1:]
    told = json.loads(last[0]) if last and last[0].startswith("{") else {}
    return {"seconds": seconds, **told}


# put before measured code: peak() is the largest resident memory of the process so far, in bytes
PEAK = """
import json
def status(key):
    for line in open("/proc/self/status"):
        if line.startswith(key + ":"):
            return int(line.split()[1]) * 1024
def peak(): return status("VmHWM")
def resident(): return status("VmRSS")
"""


def interleaved(cases: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each case in each round, the cases taking turns, after one round that is not counted."""
    times: dict[str, list[float]] = {name: [] for name in cases}
    for index in range(rounds + 1):
        for name, case in cases.items():
            begun = time.perf_counter()
            case()
            if index:
                times[name].append(time.perf_counter() - begun)
    return times


def median(values: list[float]) -> float:
    return statistics.median(values)


def record(name: str, figures: dict[str, object]) -> Path:
    """Write figures and machine as scripts/bench/results/<name>.json."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps({"machine": machine(), **figures}, indent=1) + "\n")
    if name.startswith(("cpu-sd15-", "memory-")):  # what docs/speed.svg shows
        plot_bench.main([])
    return path
