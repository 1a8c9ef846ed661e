"""Oracle: float64 products; the interpreter alone is wrong with bfloat16 and says nothing."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from minisd.kernels import REGISTRY, reference
from minisd.kernels.interpreter import is_widened, widened
from minisd.lab.shapes import QUICK, make_case
from tests.kernels.interpreting import DEVICE

pytest.importorskip("triton")
pytestmark = pytest.mark.skipif(DEVICE == "cuda", reason="the interpreter runs where no GPU is")
SITE = replace(QUICK["geglu"][1], dtype=torch.bfloat16)


def error() -> float:
    case = make_case(SITE)
    truth = reference.geglu(*case.to(torch.float64).arguments)  # type: ignore[arg-type]
    out = REGISTRY.find("geglu", "triton").run(*case.arguments)
    assert isinstance(out, torch.Tensor)
    return float((out.double() - truth).norm() / truth.norm())


def test_the_shim_is_needed_and_enough() -> None:
    """Oracle: float64; without the shim off by orders of magnitude, or not finite; with it, by rounding."""
    alone = error()
    assert not alone < 100
    with widened():
        assert is_widened()
        assert error() < 1e-2
    assert not is_widened()


def test_without_the_shim_bfloat16_is_refused() -> None:
    """Oracle: the documented reason; float32 and float16 are taken."""
    one = REGISTRY.find("geglu", "triton")
    assert "multiplies bfloat16 wrongly" in str(one.why_not(SITE))
    assert one.why_not(replace(SITE, dtype=torch.float16)) is None
    with widened():
        assert one.why_not(SITE) is None
