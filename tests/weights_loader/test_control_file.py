"""Oracle: published key lists of control networks: each loads strictly; what is missing or more is named."""

from __future__ import annotations

from dataclasses import replace
from typing import cast

import pytest
import torch

from minisd.config import SD1, SD2, SDXL, ControlNetConfig, ModelConfig, T2IAdapterConfig, UNetConfig
from minisd.errors import CheckpointError
from minisd.models.controlnet import ControlNet
from minisd.models.t2i_adapter import T2IAdapter
from minisd.weights_loader.control_file import ControlFile, control_of
from minisd.weights_loader.control_keymap import controlnet_rules
from minisd.weights_loader.keymap import unet_rules
from tests import tiny
from tests.weights_loader.fake import FakeSource, of_rows, of_tensors
from tests.weights_loader.manifests import manifest

CONTROLNETS: dict[str, ModelConfig] = {
    "ControlNet SD1.5 original (control_v11*.pth)": SD1,
    "ControlNet SD2.1 original": SD2,
    "ControlNet SD1.5 diffusers": SD1,
    "ControlNet SD2.1 diffusers": SD2,
    "ControlNet SDXL diffusers": SDXL,
    "ControlNet-Union SDXL": SDXL,
}
CONTROL_LORA = "Control-LoRA SDXL rank 128 (INFERRED)"
T2I_ADAPTERS: dict[str, ModelConfig] = {
    "t2iadapter_sd15 (original, canny/sketch cin=64, depth etc cin=192)": SD1,
    "t2iadapter_light_sd15 (original)": SD1,
    "t2iadapter_sdxl (original)": SDXL,
    "t2iadapter_sd15 diffusers": SD1,
    "t2iadapter_sdxl diffusers": SDXL,
    "t2iadapter_light diffusers": SD1,
}


def rows(label: str) -> dict[str, list]:
    return manifest("adapters")[label]


def listed(label: str, **more: list) -> ControlFile:
    return control_of(FakeSource(of_rows(rows(label) | more), name="control.safetensors"))


def load(file: ControlFile, base: dict[str, torch.Tensor] | None = None) -> torch.nn.Module:
    """Strictly, on the meta device; weights that take no memory."""
    with torch.device("meta"):
        config = file.config
        network = ControlNet(config) if isinstance(config, ControlNetConfig) else T2IAdapter(config)
    network.load_state_dict(file.state_dict(base=base), strict=True, assign=True)
    return network


@pytest.mark.parametrize("label", CONTROLNETS)
def test_published_controlnets(label: str) -> None:
    file = listed(label)
    config = cast(ControlNetConfig, file.config)
    family = CONTROLNETS[label].unet
    assert replace(config.unet, out_channels=4, depth_out=family.depth_out) == family
    assert config.control_types == (6 if "Union" in label else None)
    assert config.hint_widths == (16, 32, 96, 256) and config.hint_channels == 3
    file.check(family)
    load(file)
    assert len(file.part.rules) == len(rows(label))


def test_a_controlnet_beside_its_whole_model() -> None:
    """The files of ControlNet 1.0 hold the SD1 model, too."""
    model = {f"model.diffusion_model.{n}": ["F32", 1] for n in ("input_blocks.0.0.weight", "out.2.bias")}
    load(listed("ControlNet SD1.5 original (control_v11*.pth)", **model))


def test_promax_has_eight_types() -> None:
    more = {
        "task_embedding": ["F32", 8, 320],
        "control_add_embedding.linear_1.weight": ["F32", 1280, 8 * 256],
    }
    file = listed("ControlNet-Union SDXL", **more)
    assert cast(ControlNetConfig, file.config).control_types == 8
    load(file)


def test_control_lora_of_the_published_list() -> None:
    file = listed(CONTROL_LORA)
    assert file.kind == "control_lora" and file.needs_base
    config = cast(ControlNetConfig, file.config)
    assert replace(config.unet, out_channels=4, depth_out=SDXL.unet.depth_out) == SDXL.unet
    file.check(SDXL.unet)
    with pytest.raises(CheckpointError, match="beside a model"):
        file.state_dict()
    small = {"zero_convs.0.0.bias", "time_embed.0.bias"}
    assert small < {r.ours for r in file.part.rules}


@pytest.mark.parametrize("label", T2I_ADAPTERS)
def test_published_t2i_adapters(label: str) -> None:
    file = listed(label)
    config = cast(T2IAdapterConfig, file.config)
    assert config.light == ("light" in label)
    assert config.unshuffle == (16 if "sdxl" in label else 8)
    load(file)
    assert len(file.part.rules) == len(rows(label))


def test_what_is_missing_or_more_is_named() -> None:
    label = "ControlNet SD1.5 original (control_v11*.pth)"
    short = {k: v for k, v in rows(label).items() if "middle_block_out" not in k}
    with pytest.raises(CheckpointError, match=r"middle_block_out\.0\.weight"):
        control_of(FakeSource(of_rows(short)))
    with pytest.raises(CheckpointError, match="mystery"):
        listed(label, mystery=["F32", 3])
    with pytest.raises(CheckpointError, match="no ControlNet"):
        control_of(FakeSource(of_rows({"alpha": ["F32", 1]})))
    file = listed(label)
    with pytest.raises(CheckpointError, match="family"):
        file.check(SDXL.unet)


TINY: UNetConfig = tiny.TINY_SD1.unet


def small_shapes() -> dict[str, tuple[int, ...]]:
    return {r.ours: r.shape for r in controlnet_rules(ControlNetConfig(TINY, hint_widths=(8, 16)))}


def test_a_difference_is_added_to_the_models_weights() -> None:
    """Oracle: base + difference for the encoder, the difference alone for what a UNet has not."""
    weights = tiny.random_weights(small_shapes(), 3)
    base = tiny.random_weights({r.ours: r.shape for r in unet_rules(TINY)}, 4)
    tensors = {**weights, "difference": torch.zeros(())}
    file = control_of(FakeSource(of_tensors(tensors), tensors), TINY)
    assert file.needs_base
    read = file.state_dict(base=base, dtype=torch.float32)
    for name in ("input_blocks.1.0.in_layers.2.weight", "middle_block.1.proj_in.weight", "time_embed.0.bias"):
        wanted = base[name].float() + weights[name].float()
        torch.testing.assert_close(read[name], wanted, rtol=0, atol=1e-6)
    for name in ("zero_convs.3.0.weight", "input_hint_block.0.weight", "middle_block_out.0.bias"):
        assert torch.equal(read[name], weights[name].float())


def test_a_control_lora_is_its_product_beside_the_models_weights() -> None:
    """Oracle: base + up @ down in numpy, for matrices and convolutions."""
    whole = tiny.random_weights(small_shapes(), 5)
    base = tiny.random_weights({r.ours: r.shape for r in unet_rules(TINY)}, 6)
    tensors: dict[str, torch.Tensor] = {"lora_controlnet": torch.zeros(())}
    for name, value in whole.items():
        if value.ndim >= 2 and name.startswith(("time_embed", "input_blocks", "middle_block.")):
            module, generator = name.removesuffix(".weight"), torch.Generator().manual_seed(1)
            tensors[f"{module}.up"] = torch.randn(value.shape[0], 2, generator=generator)
            tensors[f"{module}.down"] = torch.randn(2, *value.shape[1:], generator=generator)
        else:
            tensors[name] = value.float()
    file = control_of(FakeSource(of_tensors(tensors), tensors), TINY)
    read = file.state_dict(base=base)
    assert read.keys() == small_shapes().keys()
    for name in ("input_blocks.0.0.weight", "input_blocks.1.1.transformer_blocks.0.attn1.to_q.weight"):
        module = name.removesuffix(".weight")
        up, down = (tensors[f"{module}.{which}"].double().numpy() for which in ("up", "down"))
        delta = (up @ down.reshape(2, -1)).reshape(base[name].shape)
        expected = base[name].numpy() + delta
        assert abs(read[name].double().numpy() - expected).max() < 1e-5
    assert torch.equal(read["zero_convs.0.0.weight"], whole["zero_convs.0.0.weight"].float())
