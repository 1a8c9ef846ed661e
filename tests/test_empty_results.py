"""Rules for the shapes of results against torch itself, which computes them; and what they save."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F

from minisd.empty_results import RULES

B, HALF = torch.bfloat16, torch.float16


def rand(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.ones(shape, dtype=dtype)


CALLS = [
    (F.scaled_dot_product_attention, [rand(2, 3, 5, 4), rand(2, 3, 7, 4), rand(2, 3, 7, 4)], {}),
    (torch.conv2d, [rand(2, 3, 9, 8), rand(5, 3, 3, 3), None, (2, 2), (1, 1), (1, 1), 1], {}),
    (torch.conv2d, [rand(1, 3, 9, 8, dtype=B), rand(5, 3, 1, 1, dtype=B), rand(5, dtype=B)], {}),
    (torch.conv2d, [rand(1, 3, 9, 8), rand(5, 3, 3, 3), None, (1, 1), (2, 2), (2, 2)], {}),
    (torch.cat, [[rand(2, 3, 4), rand(2, 5, 4)], 1], {}),
    (torch.cat, [[rand(2, 3), rand(2, 5)]], {"dim": -1}),
    (torch.arange, [7], {"dtype": torch.float32, "device": torch.device("cpu")}),
    (torch.arange, [3], {}),
    (torch.arange, [-2, 9, 3], {}),
    (F.linear, [rand(2, 3, 4, dtype=B), rand(5, 4, dtype=B), rand(5, dtype=B)], {}),
    (F.embedding, [torch.zeros(2, 7, dtype=torch.int64), rand(3, 4, dtype=HALF)], {}),
    (F.interpolate, [rand(1, 2, 4, 5)], {"scale_factor": 2.0, "mode": "nearest"}),
    (F.interpolate, [rand(1, 2, 4, 5)], {"size": (7, 9), "mode": "nearest"}),
    (F.group_norm, [rand(2, 8, 3, 3), 4], {}),
    (F.layer_norm, [rand(2, 8), (8,)], {}),
    (F.silu, [rand(2, 3)], {}),
    (F.silu, [rand(2, 3)], {"inplace": True}),
    (F.gelu, [rand(2, 3, dtype=B)], {}),
    (torch.sigmoid, [rand(2, 3)], {}),
    (torch.Tensor.add, [rand(2, 3, 1, 1), rand(4, 5)], {}),
    (torch.Tensor.sub, [rand(2, 3), 1.5], {}),
    (torch.Tensor.mul, [rand(3, dtype=B), rand(2, 1)], {}),
    (torch.Tensor.div, [rand(2, 3, dtype=B), 2], {}),
    (torch.Tensor.sin, [rand(4)], {}),
    (torch.Tensor.cos, [rand(4)], {}),
    (torch.Tensor.exp, [rand(4)], {}),
]


@pytest.mark.parametrize(("call", "args", "kwargs"), CALLS)
def test_a_rule_gives_the_shape_and_dtype_that_torch_gives(call, args, kwargs) -> None:
    told, true = RULES[call](*args, **kwargs), call(*args, **kwargs)
    assert (told.shape, told.dtype) == (true.shape, true.dtype)
    assert told.untyped_storage().nbytes() == true.untyped_storage().nbytes()


def test_every_rule_is_tried() -> None:
    assert {call for call, *_ in CALLS} == set(RULES)


COUNTS = """
import sys, torch
from minisd.config import SD1, SDXL
from minisd.memory import text_work, unet_work, vae_work
for config in (SD1, SDXL):
    for flow in ("resident", "disk"):
        assert unet_work(config.unet, 64, 64, 1, 77, torch.bfloat16, "sdpa", True, flow) > 0
        assert vae_work(config.vae, 64, 64, 32, torch.bfloat16, "sdpa", True, flow) > 0
        assert all(text_work(use.config, torch.bfloat16, flow) > 0 for use in config.text)
print("sympy" in sys.modules, "torch._dynamo" in sys.modules)
"""


def test_counting_imports_neither_sympy_nor_the_compiler() -> None:
    done = subprocess.run([sys.executable, "-c", COUNTS], capture_output=True, text=True)
    assert done.stdout.split() == ["False", "False"], done.stderr
