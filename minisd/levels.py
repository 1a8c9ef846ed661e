"""The ladder of guarantees: what equal and unequal bits mean, by what differs between then and now.

docs/receipts.md tells the rungs, R0 to R7, and the test of each. What a run can claim is the lowest rung that
its differences lead to, and never more.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from minisd.placement import Plan
from minisd.receipt import machine, plan_facts, versions

FREE = ("threads", "residency", "batching")  # R2, R3, R4: bits do not depend on these
PLACES = ("device", "machine", "cpu", "isa", "gpu", "capability", "cuda", "cudnn", "kernels", "attention")
PLACES += ("channels_last", "vae_tile", "tf32_conv", "tf32_matmul", "float32_matmul")
BANDS = {"R5": 60.0, "R6 float16": 35.0, "R6 bfloat16": 30.0, "R7": 60.0}  # dB of PSNR at least


@dataclass(frozen=True)
class Level:
    """rung; what equal bits show; what near pictures show; the least PSNR in dB that is near, None: only
    equal bits are promised."""

    rung: str
    equal: str
    near: str = ""
    band: float | None = None

    @property
    def band_text(self) -> str:
        return f"{self.rung}'s {self.band:g} dB"

    def holds(self, size: Mapping[str, float]) -> bool:
        """Whether two pictures are as near as the rung says. Of different sizes, nothing is."""
        if self.band is None or "levels" not in size:
            return False
        return size.get("psnr_db", float("inf")) >= self.band


def flat(plan: Mapping[str, object]) -> dict[str, object]:
    """A plan's facts, one level deep: "unet dtype", "kernels", ..."""
    out: dict[str, object] = {k: v for k, v in plan.items() if k != "parts"}
    parts = plan.get("parts")
    for part, facts in parts.items() if isinstance(parts, Mapping) else ():
        out |= {f"{part} {k}": v for k, v in facts.items()} if isinstance(facts, Mapping) else {}
    return {k: v for k, v in out.items() if not k.startswith("taesd ")}  # draws previews alone


def differing(own: Mapping[str, object], plan: Plan, version: str) -> dict[str, str]:
    """{fact: "... here, ... then"} of what is not as in a receipt."""
    groups = (
        ({**flat(plan_facts(plan))}, own.get("plan")),
        (machine(plan), own.get("machine")),
        (versions(version), own.get("versions")),
    )
    out: dict[str, str] = {}
    for now, told in groups:
        then = flat(told) if isinstance(told, Mapping) else {}
        for name in {*now, *then}:
            if now.get(name) != then.get(name):
                out[name] = f"{now.get(name)} here, {then.get(name)} then"
    return dict(sorted(out.items()))


def level_of(other: Mapping[str, str]) -> Level:
    """The rung that holds with these differences."""
    kinds = {name: name.rpartition(" ")[2] for name in other}
    binding = {n for n, kind in kinds.items() if kind not in FREE}
    if not binding:
        free = sorted({k for k in kinds.values()})
        if not free:
            return Level("R1", "R1: same machine, versions and plan, drawn again")
        if free == ["threads"]:
            return Level("R3", "R3: same machine, versions and plan, another number of threads")
        return Level("R4", "R4: same machine and versions, a plan that only moves data otherwise")
    dtypes = [other[n] for n in binding if kinds[n] == "dtype"]
    if dtypes:
        low = "bfloat16" if any("bfloat16" in d for d in dtypes) else "float16"
        return Level(
            f"R6 {low}",
            "equal bits in another precision, which no rung promises",
            f"R6: another precision ({low}); near, not equal",
            BANDS[f"R6 {low}"],
        )
    if any(kinds[n] in PLACES for n in binding):
        return Level(
            "R5",
            "equal bits on another machine or by other kernels, where R5 promises only nearness",
            "R5: another machine, device or kernel; near, not equal",
            BANDS["R5"],
        )
    return Level(
        "R7",
        "R7: equal bits by other versions",
        "R7: other versions; near, not equal",
        BANDS["R7"],
    )
