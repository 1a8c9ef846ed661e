"""Oracle: torch's own layers in float32 and bfloat16; for weights given back, equality."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from minisd.adapters import adapted
from minisd.errors import PlanError
from minisd.kernels import Kernels
from minisd.kernels.packed import packed_missing
from minisd.lora_use import LoraUse
from minisd.models.conv import Conv2d
from minisd.models.packed import Packed, PackedConv, PackedLinear
from minisd.models.packing import pack
from minisd.models.transformer import SpatialTransformer
from minisd.placement import choose_kernels
from minisd.weights_loader.lora_file import open_adapter
from minisd.weights_loader.lora_names import spellings
from tests import lora_files
from tests.kernels.test_pipeline import away, latents
from tests.tiny import TINY, tiny_model

pytestmark = pytest.mark.skipif(packed_missing("cpu") is not None, reason=str(packed_missing("cpu")))
ROUNDING = {torch.float32: 1e-6, torch.bfloat16: 1e-2}


@pytest.mark.parametrize("dtype", ROUNDING, ids=str)
def test_layers(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, 24, 9, 7, generator=generator).to(dtype)
    for stride, size in ((1, 3), (2, 3), (1, 1)):
        layer = Conv2d(24, 40, size, stride=stride, padding=size // 2).to(dtype).requires_grad_(False)
        packed = PackedConv(layer)
        for layout in (torch.contiguous_format, torch.channels_last):
            given = x.contiguous(memory_format=layout)
            assert away(packed(given).double(), layer.double()(x.double())) < ROUNDING[dtype]
            layer = layer.to(dtype)
        assert torch.equal(packed.dequantised(), layer.weight)
    tokens = x.flatten(2).transpose(1, 2)
    for layer in (nn.Linear(24, 40), nn.Linear(24, 40, bias=False), nn.Conv2d(24, 40, 1)):
        layer = layer.to(dtype).requires_grad_(False)
        packed = PackedLinear(layer)
        right = nn.functional.linear(tokens, layer.weight.flatten(1), layer.bias)
        assert away(packed(tokens).double(), right.double()) < ROUNDING[dtype]
        assert torch.equal(packed.dequantised(), layer.weight)


def test_what_is_packed() -> None:
    """Every product over tokens or pixels, and none over single rows."""
    model = tiny_model("sd1")
    pack(model.unet)
    for module in model.unet.modules():
        if isinstance(module, SpatialTransformer):
            left = [m for m in module.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
            assert not left and any(isinstance(m, PackedLinear) for m in module.modules())
    assert not any(isinstance(m, nn.Conv2d) for m in model.unet.modules())
    assert type(model.unet.time_embed[0]) is nn.Linear
    twin = copy.deepcopy(model.unet)
    mine, others = ([m for m in n.modules() if isinstance(m, Packed)] for n in (model.unet, twin))
    assert len(mine) > 10 and all(a is b for a, b in zip(mine, others, strict=True))


@pytest.mark.parametrize("name", ["sd1", "sdxl"])
def test_the_whole_pipeline(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Oracle: torch's own layers, float32. With the text once, too."""
    right = latents(name, "auto")
    monkeypatch.setattr("tests.kernels.test_pipeline.use", packing)
    for names in ("packed", "packed,text_once,times_once"):
        assert 0 < away(latents(name, names), right) < 1e-4


def packing(network: nn.Module, kernels: Kernels) -> None:
    from minisd.models.fused import use

    use(network, kernels)
    pack(network)


def test_adapters_go_beside(tmp_path) -> None:  # type: ignore[no-untyped-def]
    """Oracle: the adapter merged into plain weights."""
    path = tmp_path / "film.safetensors"
    lora_files.write(path, lora_files.kohya(TINY["sd1"], 1))
    plain, packed = tiny_model("sd1"), tiny_model("sd1")
    pack(packed.unet)
    uses = [(open_adapter(path, spellings(plain.config)), LoraUse("film", 0.8))]
    x = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    context = torch.randn(1, 77, plain.config.unet.context_dim, generator=torch.Generator().manual_seed(2))
    with torch.inference_mode():
        first, second, off = (
            m.unet(x, torch.tensor([500.0]), context)
            for m in (adapted(plain, uses), adapted(packed, uses), packed)
        )
    assert away(second, first) < 1e-5 < away(off, first)


def test_refused() -> None:
    assert "CPUs" in str(Kernels.parse("packed").why_not("cuda"))
    with pytest.raises(PlanError, match="leave fused_qkv or packed out"):
        choose_kernels("packed,fused_qkv", "auto", "cpu")
