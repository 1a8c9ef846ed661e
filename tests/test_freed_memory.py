"""Oracle: the page faults that the system counts for a process, and the same picture without it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from minisd import freed_memory
from minisd.config import FAMILIES
from minisd.engine import load
from minisd.errors import PlanError
from minisd.freed_memory import PAD, keep_freed_memory
from minisd.plan_devices import PROCESS_BYTES, DeviceFacts
from minisd.planner import Sizes, choose
from minisd.wishes import Wishes

linux = pytest.mark.skipif(freed_memory.why_not() is not None, reason="not glibc")

FAULTS = """
import json, resource, sys, torch
import minisd, minisd.freed_memory
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(8):
        torch.full((2**24,), 1.0).add(1.0)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
untouched = minisd.freed_memory.kept
faults()
found = [faults()]
minisd.keep_freed_memory()
minisd.keep_freed_memory()
faults()
found.append(faults())
print(json.dumps([untouched, minisd.freed_memory.kept, *found]))
"""


def run(*args: str) -> str:
    return subprocess.run([sys.executable, *args], capture_output=True, text=True, check=True).stdout


@linux
def test_freed_memory_is_not_asked_for_again() -> None:
    """Oracle: minor faults of the same work in one process, before and after; importing does nothing."""
    untouched, kept, before, after = json.loads(run("-c", FAULTS))
    assert untouched is False and kept is True
    assert before >= 8 * 2 * 32, "buffers of 64 MiB go back to the system; its pages are of 2 MiB or less"
    assert after < before / 5


@linux
def test_the_command_line_draws_the_same_picture(tmp_path: Path) -> None:
    """Oracle: the picture of this process, which keeps nothing; and the plan of one that does."""
    out = tmp_path / "apple.png"
    flags = ["-m", "minisd", "txt2img", "a red apple", "--seed", "1", "--steps", "1", "--keep-freed-memory"]
    run(*flags, "--device", "cpu", "--dtype", "float32", "-o", str(out))
    with load(device="cpu", dtype="float32") as engine:
        image = engine.txt2img("a red apple", seed=1, steps=1).image
    with Image.open(out) as drawn:
        assert drawn.convert("RGB").tobytes() == image.tobytes()
    stages = json.loads(run("-m", "minisd", "plan", "--device", "cpu", "--json", "--keep-freed-memory"))[
        "stages"
    ]
    told = [s["base"] - PROCESS_BYTES - PAD for s in stages]
    assert told == [0, stages[0]["work"], stages[0]["work"] + stages[1]["work"]]


@pytest.mark.parametrize(("offload", "measured"), [("none", 3.266), ("staged", 3.280), ("streamed", 1.706)])
def test_the_plan_counts_what_stays(offload: str, measured: float) -> None:
    """Oracle: peaks of SD1.5 at 512 x 512 in bfloat16 in a process that keeps what it frees (Linux, torch
    2.13; 0.48 GB of them the program's own), within a tenth."""
    elements = {"text_encoder": 123_060_480, "unet": 859_520_964, "vae": 83_653_863}
    facts = DeviceFacts(
        "cpu", None, 480 * 10**6 + PAD, True, "", fp8=False, host=True, reorders=True, keeps=True
    )
    sizes, wishes = Sizes(64, 64, 1, guided=True), Wishes(device="cpu", dtype="bfloat16", offload=offload)
    plan = choose(FAMILIES["sd1"], elements, sizes, wishes, {"cpu": facts})
    assert abs(plan.peak / 1e9 - measured) < 0.1 * measured
    assert plan.peak == plan.stages[-1].peak, "it only grows"


def test_another_allocator_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Oracle: PlanError that says why, and nothing set."""

    class Other:
        """The C library of a system without glibc."""

    monkeypatch.setattr("ctypes.CDLL", lambda name: Other())
    monkeypatch.setattr("sys.platform", "linux")
    with pytest.raises(PlanError, match="a setting of glibc, and this system has another C library"):
        keep_freed_memory()
    monkeypatch.setattr("sys.platform", "darwin")
    with pytest.raises(PlanError, match="this is darwin; leave it out"):
        keep_freed_memory()
    assert not freed_memory.kept


HOLES = """
import torch
import minisd.freed_memory
from minisd.freed_memory import give_back

def resident():
    line = next(x for x in open("/proc/self/status") if x.startswith("VmRSS"))
    return int(line.split()[1]) // 1024

first = torch.ones(30 * 2**20, dtype=torch.uint8)
del first  # from now on glibc keeps what is smaller in its heap
parts = [torch.ones(2**20, dtype=torch.uint8) for _ in range(300)]
kept = parts[1::2]
del parts
held = resident()
minisd.freed_memory.kept = True
give_back()
print(held - resident())
minisd.freed_memory.kept = False
give_back()
print(held - resident(), sum(int(x.sum()) for x in kept) == 150 * 2**20)
"""


@linux
def test_holes_between_what_is_in_use_go_back_to_the_system() -> None:
    """Oracle: 150 MB in 150 holes, of which at least 100 are given back, unless they are to be kept; what is
    in use stays as it is."""
    kept, given, same = run("-c", HOLES).split()
    assert int(kept) < 10 and int(given) >= 100 and same == "True"
