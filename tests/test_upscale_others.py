"""Oracle: spandrel's own network on the same tensors, where it is installed; what is said where it is not."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from minisd.errors import CheckpointError, PlanError
from minisd.upscale import load_upscaler
from tests.control_files import map_of


def test_without_spandrel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Oracle: the sentence; a damaged file of ours is never handed on."""
    monkeypatch.setitem(sys.modules, "spandrel", None)
    save_file({"layers.0.weight": torch.zeros(2, 2)}, tmp_path / "swin.safetensors")
    with pytest.raises(
        CheckpointError, match=r"holds no upscaler .*; for other .* install minisd\[upscalers\]"
    ):
        load_upscaler(tmp_path / "swin.safetensors")
    save_file({"body.0.rdb1.conv1.weight": torch.zeros(2, 2, 3, 3)}, tmp_path / "half.safetensors")
    with pytest.raises(CheckpointError) as caught:
        load_upscaler(tmp_path / "half.safetensors")
    assert "install" not in str(caught.value)


def swin() -> torch.nn.Module:
    from spandrel.architectures.SwinIR import SwinIR  # type: ignore[import-not-found]

    torch.manual_seed(0)
    sizes = {"img_size": 16, "embed_dim": 12, "depths": [2], "num_heads": [2], "window_size": 4, "upscale": 2}
    network = SwinIR(**sizes, mlp_ratio=2.0, upsampler="pixelshuffledirect", resi_connection="1conv")
    return network.eval()


def test_swinir_as_spandrel(tmp_path: Path) -> None:
    pytest.importorskip("spandrel", exc_type=ImportError)
    network = swin()
    weights = {f"params.{k}": v.contiguous() for k, v in network.state_dict().items()}
    save_file(weights, tmp_path / "swin.safetensors")
    made = load_upscaler(tmp_path / "swin.safetensors", device="cpu")
    assert (made.scale, made.config.channels, made.dtype) == (2, 3, torch.float32)
    image = map_of(20, 16)
    x = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None] / 255
    with torch.inference_mode():
        wanted = network(x).clamp(0, 1)
    levels = (wanted[0] * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    assert np.array_equal(np.array(made(image, tile=None)), levels) and levels.std() > 1
    assert made(map_of(70, 30), tile=24).size == (140, 60)


def test_what_spandrel_does_not_take(tmp_path: Path) -> None:
    pytest.importorskip("spandrel", exc_type=ImportError)
    path = tmp_path / "x.safetensors"
    save_file({"nothing.weight": torch.zeros(2, 2)}, path)
    with pytest.raises(CheckpointError, match="spandrel does not know it either"):
        load_upscaler(path)
    weights = {k: v.contiguous() for k, v in swin().state_dict().items()}
    save_file({**weights, "norm.weight": torch.zeros(5)}, path)
    with pytest.raises(CheckpointError, match="spandrel cannot build it"):
        load_upscaler(path)
    save_file(weights, path)
    with pytest.raises(PlanError, match="float16 computes"):
        load_upscaler(path, device="cpu", dtype="float16")
