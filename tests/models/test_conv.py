"""Large convolutions in strips, against the same one taken whole: equality of bits."""

from __future__ import annotations

import pytest
import torch

from minisd.models import conv as under_test
from minisd.models.conv import Conv2d


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("height", "rows"), [(64, 16), (61, 7), (40, 1), (33, 32)])
def test_strips_have_the_bits_of_the_whole(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, height: int, rows: int
) -> None:
    layer = Conv2d(16, 24, 3, padding=1).to(dtype).requires_grad_(False)
    x = torch.randn(1, 16, height, 96, generator=torch.Generator().manual_seed(0)).to(dtype)
    whole = layer(x)
    monkeypatch.setattr(under_test, "HUGE", x.nbytes - 1)
    monkeypatch.setattr(under_test, "STRIP", -(-x.nbytes * rows // height))
    calls, real = [], under_test.taken_whole
    monkeypatch.setattr(under_test, "taken_whole", lambda *given: calls.append(given) or real(*given))
    assert torch.equal(layer(x), whole)
    assert len(calls) == -(-height // rows)


def test_others_are_taken_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """Oracle: one call of torch's for strides, other kernels, and what is not huge."""
    monkeypatch.setattr(under_test, "STRIP", 64)
    monkeypatch.setattr(under_test, "in_strips", lambda *_: pytest.fail("in strips"))
    x = torch.randn(1, 16, 40, 40)
    Conv2d(16, 16, 3, padding=1)(x)
    monkeypatch.setattr(under_test, "HUGE", 1)
    Conv2d(16, 16, 3, padding=1, stride=2)(x)
    Conv2d(16, 16, 5, padding=2)(x)
    Conv2d(16, 16, 3)(x)
