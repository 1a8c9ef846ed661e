"""Oracle: minisd/kernels/reference.py in float64, beside torch's own error; without a GPU under Triton's
interpreter."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from minisd.kernels import OPERATIONS, REGISTRY
from minisd.kernels.registry import Implementation
from minisd.lab.check import check_one
from minisd.lab.shapes import QUICK, make_case
from tests.kernels.interpreting import DEVICE, right_products

pytest.importorskip("triton")
OURS = [op for op in OPERATIONS if "triton" in REGISTRY.names(op)]
SITES = [site for op in OURS for site in QUICK[op]]


def triton_of(op: str) -> Implementation:
    return REGISTRY.find(op, "triton")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("site", SITES, ids=str)
def test_every_kernel_is_as_exact_as_torch(site, dtype: torch.dtype) -> None:  # type: ignore[no-untyped-def]
    """Oracle: the reference; strided inputs, memory full of NaN, the same bits again and alone."""
    if site.n > 500 and dtype != torch.float32 and DEVICE == "cpu":
        site = replace(site, n=150, m=150)  # the interpreter takes seconds for each long row of tiles
    base = REGISTRY.find(site.op, "sdpa" if site.op.endswith("attention") else "torch")
    with right_products():
        row = check_one(triton_of(site.op), base, replace(site, dtype=dtype), "strided", DEVICE)
    assert row.ok, row.failures
    assert row.alone is not False and row.repeats


@pytest.mark.parametrize("op", OURS)
@pytest.mark.parametrize("kind", ["large", "equal"])
def test_hard_inputs(op: str, kind: str) -> None:
    """Oracle: the reference, where scores reach hundreds, means are far from 0, or all rows are the same."""
    site = replace(min(QUICK[op], key=lambda s: s.n * s.m * s.d), dtype=torch.float16)
    base = REGISTRY.find(op, "sdpa" if op.endswith("attention") else "torch")
    row = check_one(triton_of(op), base, site, kind, DEVICE)
    assert row.ok, row.failures


def test_a_fused_projection_is_read_where_it_lies(monkeypatch: pytest.MonkeyPatch) -> None:
    """Oracle: no copy of q, k or v is made: Tensor.contiguous is not called."""
    case = make_case(replace(QUICK["self_attention"][0], dtype=torch.float32), "strided", device=DEVICE)
    monkeypatch.setattr(torch.Tensor, "contiguous", lambda *a, **k: pytest.fail("a copy"))
    triton_of("self_attention").run(*case.arguments, **case.named)


def test_config_rows_cover_every_architecture() -> None:
    """Oracle: the tables themselves; every head dim of a family finds a row, a wider one is refused."""
    from minisd.kernels.configs import ARCHITECTURES, KIN, cross_config, flash_config, row_of

    for arch in (*ARCHITECTURES, *KIN):
        row = row_of(arch)
        assert row is not None
        for d in (40, 64, 80, 160, 256):
            for keys in (77, 1024, 4096):
                assert flash_config(row, d, keys, 2).rows >= 16
            assert cross_config(row, d, 2).rows >= 16
    site = replace(QUICK["self_attention"][0], dtype=torch.float16)
    refused = replace(site, d=264)
    assert "head dims up to 256" in str(triton_of("self_attention").why_not(refused))
