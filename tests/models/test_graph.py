"""Oracle: the function itself; recordings that only this file makes, as no GPU is needed to see where inputs
and results go."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from minisd.models.graph import Graphs
from minisd.models.transformer import BasicTransformerBlock
from minisd.models.unet import compile_regions
from tests.tiny import tiny_model

made: list[int] = []


def record(run: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
    """As a graph: the result's place stays, replaying computes from the inputs' places."""
    out = run()
    made.append(1)
    return lambda: out.copy_(run()), out  # type: ignore[return-value]


def test_inputs_and_results_go_to_the_right_places() -> None:
    """Oracle: the network called directly, other inputs and another shape in between."""
    made.clear()
    unet = tiny_model("sd1").unet
    unet.graphs = Graphs(record)
    outs: list[tuple[Tensor, Tensor]] = []
    with torch.inference_mode():
        for size, timestep in ((8, 900.0), (8, 100.0), (16, 900.0), (8, 900.0)):
            x, context = torch.randn(1, 4, size, size), torch.randn(1, 77, 32)
            inputs = x, torch.tensor([timestep]), context
            outs.append((unet(*inputs), unet.compute(*inputs)))
    assert all(torch.equal(a, b) for a, b in outs)
    assert len(made) == 2  # one recording for each shape


@pytest.mark.filterwarnings("ignore")
def test_compiled_regions_compute_the_same() -> None:
    """Oracle: the blocks as they are; torch.compile's own eager backend, which needs no compiler."""
    unet = tiny_model("sd1", dtype="float64").unet  # not what Conv2d hands to oneDNN by name on a CPU
    x, context = torch.randn(1, 4, 8, 8).double(), torch.randn(1, 77, 32).double()
    with torch.inference_mode():
        expected = unet(x, torch.tensor([500.0]), context)
        compile_regions(unet, backend="eager")
        assert torch.allclose(unet(x, torch.tensor([500.0]), context), expected, atol=1e-10)
    blocks = [m for m in unet.modules() if isinstance(m, BasicTransformerBlock)]
    assert blocks and all(m._compiled_call_impl is not None for m in blocks)
