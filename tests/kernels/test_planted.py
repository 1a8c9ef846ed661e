"""Oracle: four kernels with a mistake each, which `check` must find; and the one without, which it passes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from minisd.kernels import REGISTRY
from minisd.kernels.registry import Implementation, Site
from minisd.lab.check import Row, check_one

TILE = 64
SITE = Site("self_attention", torch.float32, b=2, h=2, n=200, m=200, d=40)


def tiles(q: Tensor, k: Tensor, v: Tensor, num_heads: int, mistake: str) -> Tensor:
    """Softmax over tiles of keys with a running maximum, as flash attention does it, and one mistake."""
    b, n, width = q.shape
    q, k, v = (t.unflatten(-1, (num_heads, -1)).transpose(1, 2) for t in (q, k, v))
    keys, size = k.shape[2], TILE // 2 if mistake == "split" and b > 1 else TILE
    padding = (0, 0, 0, -keys % size)
    k, v = F.pad(k, padding), F.pad(v, padding)
    sums = torch.bfloat16 if mistake == "bf16" else torch.float32
    highest = torch.full((*q.shape[:3], 1), float("-inf"))
    total, acc = torch.zeros(*q.shape[:3], 1), torch.zeros(q.shape, dtype=sums)
    for start in range(0, k.shape[2], size):
        scores = q.float() @ k[:, :, start : start + size].float().transpose(-1, -2) * q.shape[-1] ** -0.5
        if mistake != "mask":
            scores = scores.masked_fill(torch.arange(start, start + size) >= keys, float("-inf"))
        higher = torch.maximum(highest, scores.amax(-1, keepdim=True))
        weights, fade = (scores - higher).exp(), (highest - higher).exp()
        total = total * fade + weights.sum(-1, keepdim=True)
        acc = (acc * fade.to(sums) + (weights @ v[:, :, start : start + size].float()).to(sums)).to(sums)
        highest = higher
    found = (acc.float() / total).to(q.dtype).transpose(1, 2).flatten(2)
    out = torch.empty(b, n, width, dtype=q.dtype)
    written = n - n % TILE if mistake == "tail" else n
    out[:, :written] = found[:, :written]
    return out


def checked(mistake: str, dtype: torch.dtype = torch.float32) -> Row:
    def run(q: Tensor, k: Tensor, v: Tensor, num_heads: int, *, causal: bool = False) -> Tensor:
        return tiles(q, k, v, num_heads, mistake)

    one = Implementation("self_attention", mistake, run, "planted")
    return check_one(one, REGISTRY.find("self_attention", "sdpa"), replace(SITE, dtype=dtype), "random")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_without_a_mistake_it_passes(dtype: torch.dtype) -> None:
    """Oracle: check's own bounds; what the others differ from is right."""
    row = checked("none", dtype)
    assert row.ok, row.failures


@pytest.mark.parametrize(
    "mistake,dtype,said",
    [
        ("mask", torch.float32, "error"),
        ("mask", torch.bfloat16, "error"),
        ("bf16", torch.float32, "error"),
        ("bf16", torch.float16, "error"),
        ("tail", torch.float32, "not finite"),
        ("tail", torch.bfloat16, "not finite"),
        ("split", torch.float32, "alone"),
    ],
)
def test_a_mistake_is_found(mistake: str, dtype: torch.dtype, said: str) -> None:
    """Inverse: a skipped mask, sums in bfloat16, an unwritten tail, a split that depends on the batch."""
    row = checked(mistake, dtype)
    assert not row.ok and said in "; ".join(row.failures)


def test_a_kernel_that_changes_its_mind_is_found() -> None:
    """Inverse: random rounding gives other bits when run again."""

    def run(q: Tensor, k: Tensor, v: Tensor, num_heads: int, *, causal: bool = False) -> Tensor:
        return tiles(q, k, v, num_heads, "none") * (1 + 1e-6 * torch.randn(q.shape))

    one = Implementation("self_attention", "restless", run, "planted")
    row = check_one(one, REGISTRY.find("self_attention", "sdpa"), SITE, "random")
    assert "other bits when run again" in row.failures
