"""Oracle: the compilers of NVIDIA's and AMD's GPUs, which need no GPU; a kernel that spills, one that does
not fit and one without wgmma are found."""

from __future__ import annotations

from pathlib import Path

import pytest

from minisd.lab.work import ahead_of_time
from scripts.aot_check import PROMISED, broken, check

pytest.importorskip("triton")
GOOD: dict[str, object] = {
    "case": "flash",
    "target": "sm_90",
    "kernel": "flash_kernel",
    "product": True,
    "spills": 0,
    "shared": 1024,
    "fits": True,
    "matrix": {"HGMMA": 8},
}


@pytest.mark.parametrize("target", PROMISED)
def test_every_kernel_compiles_as_promised(target: str) -> None:
    """Oracle: Triton's compiler and the vendors' tools: no spills and wgmma on sm_90; the others fit."""
    rows, wrong = check([target], [])
    assert wrong == [] and len(rows) > 20


@pytest.mark.parametrize(
    "change,said",
    [
        ({"spills": 20}, "spilled"),
        ({"fits": False}, "do not fit"),
        ({"matrix": {"HMMA": 8}}, "not as HGMMA"),
        ({"matrix": {}}, "no matrix instruction"),
        ({"error": "CompilationError: no"}, "CompilationError"),
    ],
)
def test_a_broken_promise_is_found(change: dict[str, object], said: str) -> None:
    """Inverse: one fact of a good row made bad."""
    assert broken(GOOD) is None
    assert said in str(broken({**GOOD, **change}))


OWN = """
import torch, triton
import triton.language as tl
from minisd.lab.own import register

@triton.jit
def hungry(X, Y, N: tl.constexpr):
    at = tl.arange(0, N)
    a = tl.load(X + at[:, None] * N + at[None, :])
    tl.store(Y + at[:, None] * N + at[None, :], tl.dot(a, tl.dot(a, a).to(a.dtype)))

@register("guidance")
def greedy(cond, uncond, x, scale, keep, add, ratio):
    a = torch.empty(128, 128, dtype=torch.bfloat16)
    hungry[(1,)](a, torch.empty(128, 128), N=128, num_warps=1)
    return x, x
"""


def test_spills_of_a_persons_own_kernel_are_seen(tmp_path: Path) -> None:
    """Inverse: 128 x 128 sums for one warp cannot stay in registers."""
    (tmp_path / "own.py").write_text(OWN)
    rows = ahead_of_time(["sm_90"], str(tmp_path / "own.py"))
    assert rows and all("error" not in r for r in rows)
    assert any(isinstance(r["spills"], int) and r["spills"] > 0 for r in rows)
