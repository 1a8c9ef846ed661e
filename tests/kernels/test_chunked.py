"""Oracle: minisd/kernels/reference.py, attention in float64, on the same rounded inputs."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from minisd.engine import embedded_model, load
from minisd.errors import PlanError
from minisd.kernels import REGISTRY, Kernels, attention
from minisd.kernels.attention_torch import chunked
from minisd.model import plan
from minisd.request import Request

# (batch, tokens, heads, head_dim): the UNets' and the VAE's, ragged, shorter and longer than a chunk
SITES = (
    (2, 65, 8, 40),
    (1, 300, 3, 40),
    (1, 257, 10, 64),
    (2, 33, 8, 80),
    (1, 17, 8, 160),
    (2, 63, 1, 512),
    (1, 1, 2, 40),
)
BOUND = 0.02  # relative RMS, as the registry says, for scores of a standard deviation up to 3
BF16 = torch.bfloat16


def inputs(site: tuple[int, int, int, int], gain: float = 1.0, shift: float = 0.0) -> list[Tensor]:
    """q, k, v: scores of standard deviation `gain`, keys about a mean `shift` times as long as they are."""
    b, n, h, d = site
    generator = torch.Generator().manual_seed(n * 7 + d)
    q, k, v = (torch.randn(b, n, h * d, generator=generator) for _ in range(3))
    middle = shift * torch.randn(1, 1, h * d, generator=generator)
    return [(q * gain**0.5).to(BF16), ((k + middle) * gain**0.5).to(BF16), v.to(BF16)]


def error(out: Tensor, q: Tensor, k: Tensor, v: Tensor, heads: int) -> float:
    truth = attention(q.double(), k.double(), v.double(), heads, implementation="reference")
    return float((out.double() - truth).square().mean().sqrt() / truth.square().mean().sqrt())


@pytest.mark.parametrize("gain", [1.0, 3.0])
@pytest.mark.parametrize("site", SITES, ids=str)
def test_error_is_within_what_is_said(site: tuple[int, int, int, int], gain: float) -> None:
    """Oracle: the reference. Its bound is the registry's, and more than torch's fused kernel errs."""
    given = inputs(site, gain)
    out = attention(*given, site[2], implementation="chunked")
    assert out.dtype == BF16 and out.shape == given[0].shape
    op = "wide_attention" if site[2] == 1 else "self_attention"
    assert REGISTRY.find(op, "chunked").approximate == BOUND
    assert error(out, *given, site[2]) <= BOUND


def test_scores_are_rounded_and_that_is_the_error() -> None:
    """Oracle: the reference beside torch's fused kernel, which rounds no score: the label is deserved."""
    given = inputs((1, 300, 3, 40), gain=3.0)
    mine = error(attention(*given, 3, implementation="chunked"), *given, 3)
    fused = error(attention(*given, 3), *given, 3)
    assert fused < 0.004 < mine


def test_taking_the_mean_key_away_is_exact_and_helps() -> None:
    """Oracle: the reference where all keys lie far from 0: as exact as without that; by hand without it, the
    error is several times as large."""
    plain, far = inputs((1, 300, 3, 40)), inputs((1, 300, 3, 40), shift=16.0)
    near = error(chunked(*plain, 3), *plain, 3)
    assert error(chunked(*far, 3), *far, 3) < 1.5 * near
    q, k, v = (t.unflatten(-1, (3, -1)).transpose(1, 2) for t in far)
    bare = ((q * 40**-0.5) @ k.transpose(-1, -2)).softmax(-1) @ v
    assert error(bare.transpose(1, 2).flatten(2), *far, 3) > 3 * near


def test_an_image_has_the_same_bits_in_any_company() -> None:
    """Oracle: each image alone; one chunk for all queries gives the same to rounding."""
    given = inputs((3, 300, 2, 40))
    whole = chunked(*given, 2)
    for i in range(3):
        assert torch.equal(whole[i : i + 1], chunked(*(t[i : i + 1] for t in given), 2))
    assert torch.allclose(whole, chunked(*given, 2, rows=300), atol=0.02)
    views = torch.cat(given, -1).chunk(3, -1)
    assert torch.equal(chunked(*views, 2), whole)


def test_by_name_only_and_labelled() -> None:
    """Oracle: what is chosen unless it is named, the plan's words, and the errors for other precisions and
    other attentions."""
    assert all(REGISTRY.find(op, getattr(Kernels(), op)).approximate is None for op in REGISTRY.table)
    path, request = embedded_model(), Request()
    made = plan(path, request, device="cpu", dtype="bfloat16", kernels="chunked")
    words = "approximate: self_attention=chunked, wide_attention=chunked"
    assert made.kernels.reason == f"asked for by name; {words}" and words in str(made)
    with pytest.raises(PlanError, match="unet: chunked: takes bfloat16, not float32"):
        plan(path, request, device="cpu", dtype="float32", kernels="chunked")
    with pytest.raises(PlanError, match="chunked is for self_attention and wide_attention alone"):
        plan(path, request, device="cpu", dtype="bfloat16", attention="chunked")
    with pytest.raises(ValueError, match="all tokens"):
        chunked(*inputs((1, 9, 2, 40)), 2, causal=True)


def test_a_picture_by_it() -> None:
    """Oracle: the same picture by torch's kernel: other bits, nearly the same pixels."""
    request = Request(prompt="a red apple", seed=3, steps=3)
    pictures = []
    for kernels in ("auto", "chunked"):
        with load(device="cpu", dtype="bfloat16", kernels=kernels) as engine:
            pictures.append(engine.run(request).drawing.latents)
    assert not torch.equal(*pictures)
    assert (pictures[0] - pictures[1]).norm() < 0.1 * pictures[0].norm()
