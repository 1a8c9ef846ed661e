"""Oracle: minisd/kernels/reference.py, the formula in float64; for it, an einsum written here."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from torch import Tensor

from minisd.kernels import REGISTRY, attention, why_not
from minisd.kernels.attention import attention_site
from minisd.kernels.attention_torch import sliced

# (batch, queries, keys, heads, head_dim): each family's sites, ragged, at lengths a test can afford
SITES = {
    "sd1 self d40": (2, 65, 65, 8, 40),
    "sd1 text d40": (1, 130, 77, 8, 40),
    "sd1 d80": (1, 33, 77, 8, 80),
    "sd1 d160": (2, 17, 77, 8, 160),
    "sdxl d64": (1, 257, 257, 10, 64),
    "sdxl two chunks d64": (1, 31, 154, 20, 64),
    "vae d512": (1, 63, 63, 1, 512),
    "one query": (1, 1, 77, 2, 40),
    "one key": (1, 5, 1, 2, 40),
    "more rows than a slice": (1, 1031, 77, 1, 40),
}
TEXT = {"clip-l": (1, 77, 77, 12, 64), "bigg": (2, 77, 77, 20, 64), "short": (1, 9, 9, 4, 8)}
EVERY = [one.name for one in REGISTRY if one.op == "self_attention"]
HERE = ["sdpa", "sliced", "sdpa_math", "sdpa_flash", "reference"]  # on a CPU, without Triton's interpreter
FAST = HERE[:-1]


def qkv(shape: tuple[int, int, int, int, int], dtype: torch.dtype, spread: float = 1.0) -> list[Tensor]:
    batch, n, m, heads, dim = shape
    generator = torch.Generator().manual_seed(n * 7 + m)
    sizes = [(batch, n, heads * dim), (batch, m, heads * dim), (batch, m, heads * dim)]
    return [(torch.randn(s, generator=generator, dtype=torch.float64) * spread).to(dtype) for s in sizes]


def rms(x: Tensor) -> float:
    return float(x.double().square().mean().sqrt())


@pytest.mark.parametrize("site", [*SITES, *TEXT])
def test_the_reference_is_the_formula(site: str) -> None:
    """Oracle: softmax(q k^T / sqrt(d)) v by einsum, one head at a time."""
    shape, causal = (TEXT[site], True) if site in TEXT else (SITES[site], False)
    q, k, v = qkv(shape, torch.float64)
    heads, dim = shape[3:]
    parts = []
    for h in range(heads):
        a, b, c = (t[..., h * dim : (h + 1) * dim] for t in (q, k, v))
        scores = torch.einsum("bnd,bmd->bnm", a, b) / dim**0.5
        if causal:
            scores = scores + torch.full(scores.shape[-2:], float("-inf"), dtype=torch.float64).triu(1)
        weights = (scores - scores.amax(-1, keepdim=True)).exp()
        parts.append(torch.einsum("bnm,bmd->bnd", weights / weights.sum(-1, keepdim=True), c))
    out = attention(q, k, v, heads, causal=causal, implementation="reference")
    assert (out - torch.cat(parts, -1)).abs().max() < 1e-13


@pytest.mark.parametrize("name,site", list(product(FAST, [*SITES, *TEXT])))
def test_float64_is_exact(name: str, site: str) -> None:
    """Oracle: the reference; what is left is the rounding of float64."""
    shape, causal = (TEXT[site], True) if site in TEXT else (SITES[site], False)
    q, k, v = qkv(shape, torch.float64)
    out = attention(q, k, v, shape[3], causal=causal, implementation=name)
    truth = attention(q, k, v, shape[3], causal=causal, implementation="reference")
    assert out.shape == q.shape and out.dtype == q.dtype
    assert (out - truth).abs().max() < 1e-13


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name,site", list(product(FAST, [*SITES, *TEXT])))
def test_error_is_that_of_torch_or_of_the_format(name: str, site: str, dtype: torch.dtype) -> None:
    """Oracle: the reference on the same rounded inputs; RMS error at most twice that of torch's SDPA."""
    shape, causal = (TEXT[site], True) if site in TEXT else (SITES[site], False)
    q, k, v = qkv(shape, dtype)
    wide = q.double(), k.double(), v.double()
    truth = attention(*wide, shape[3], causal=causal, implementation="reference")
    out = attention(q, k, v, shape[3], causal=causal, implementation=name)
    torch_error = rms(attention(q, k, v, shape[3], causal=causal, implementation="sdpa") - truth)
    rounding = torch.finfo(dtype).eps * rms(truth)
    assert out.dtype == dtype
    assert rms(out - truth) <= max(2 * torch_error, rounding)
    assert torch_error <= 4 * rounding  # or the comparison above would mean little


@pytest.mark.parametrize("name", HERE)
def test_large_scores_stay_finite(name: str) -> None:
    """Oracle: the reference, where scores reach thousands and a bare exp overflows."""
    q, k, v = qkv((1, 33, 77, 2, 64), torch.float32, spread=30.0)
    truth = attention(q.double(), k.double(), v.double(), 2, implementation="reference")
    out = attention(q, k, v, 2, implementation=name)
    assert torch.isfinite(out).all()
    assert rms(out - truth) < 1e-3 * rms(truth)


@pytest.mark.parametrize("rows", [1, 7, 64, 100, 1000])
def test_slices_do_not_change_the_result(rows: int) -> None:
    """Oracle: one slice that covers everything."""
    q, k, v = qkv((2, 77, 77, 4, 16), torch.float64)
    for causal in (False, True):
        whole = sliced(q, k, v, 4, causal=causal, rows=77)
        assert (sliced(q, k, v, 4, causal=causal, rows=rows) - whole).abs().max() < 1e-14


@pytest.mark.parametrize("name", HERE)
def test_inputs_are_left_alone_and_may_be_views(name: str) -> None:
    """Oracle: equality with the result for contiguous copies."""
    packed = qkv((2, 40, 40, 3, 48), torch.float64)[0]
    q, k, v = packed.chunk(3, dim=-1)
    before = packed.clone()
    out = attention(q, k, v, 2, implementation=name)
    same = attention(q.contiguous(), k.contiguous(), v.contiguous(), 2, implementation=name)
    assert (out - same).abs().max() < 1e-14
    assert torch.equal(packed, before)


def test_unknown_names_are_refused_with_the_known_ones() -> None:
    """Oracle: the documented ValueError."""
    assert why_not("sdpa") is None
    q, k, v = qkv((1, 4, 4, 1, 8), torch.float32)
    with pytest.raises(ValueError, match="'flash9'.*reference.*sdpa.*sliced"):
        attention(q, k, v, 1, implementation="flash9")


@pytest.mark.parametrize("name", sorted(set(EVERY) - set(HERE) - {"avx512", "chunked"}))
@pytest.mark.skipif(torch.cuda.is_available(), reason="says it where no GPU is")
def test_what_needs_a_gpu_says_so(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Oracle: the documented ValueError; nothing is put in the place of what was asked for."""
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    q, k, v = qkv((1, 4, 4, 1, 8), torch.float32)
    reason = why_not(name, attention_site(q, k, 1, causal=False))
    assert reason is not None and reason.startswith(f"{name}: ")
    with pytest.raises(ValueError, match="self_attention b1 h1 n4 m4 d8 float32 on cpu: .* not (on|for) cpu"):
        attention(q, k, v, 1, implementation=name)
