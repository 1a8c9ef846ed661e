"""Oracles: diffusers' and transformers' own classes loading what we write, and equality after a round
trip."""

from __future__ import annotations

import json
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import pytest
import torch
from torch import Tensor

from minisd.config import SD2, SDXL, SDXL_REFINER, ModelConfig, TextConfig, UNetConfig, VAEConfig
from minisd.errors import CheckpointError
from minisd.weights_loader.checkpoint import Checkpoint, checkpoint_of, open_checkpoint
from minisd.weights_loader.config_json import KEY, config_to_json
from minisd.weights_loader.convert import convert
from minisd.weights_loader.diffusers_config import PIPELINES, text_json, unet_json, vae_json
from tests.weights_loader.fake import FakeSource, of_rows, of_tensors
from tests.weights_loader.manifests import FAMILY, manifest
from tests.weights_loader.test_checkpoint import TINY, tiny_tensors

UNET_XL = UNetConfig(
    model_channels=32,
    channel_mult=(1, 2),
    num_res_blocks=(2, 2),
    depth_in=(0, 0, 2, 2),
    depth_mid=2,
    depth_out=(2, 2, 2, 0, 0, 0),
    context_dim=56,
    num_heads=None,
    head_dim=16,
    linear_proj=True,
    y_dim=96 + 6 * 256,
    norm_groups=16,
)
L = TextConfig(vocab_size=40, max_length=7, width=24, layers=2, num_heads=3, mlp_dim=20)
G = replace(L, width=32, num_heads=4, activation="gelu", projection_dim=96, layers=3)
VAE = VAEConfig(ch=32, ch_mult=(1, 2), num_res_blocks=1, norm_groups=8, scale_factor=0.13025)
TINY_XL = replace(
    SDXL,
    unet=UNET_XL,
    vae=VAE,
    text=(replace(SDXL.text[0], config=L), replace(SDXL.text[1], config=G)),
    prediction="v",
    zero_terminal_snr=True,
    size=64,
)
TINY_SD2 = replace(
    SD2,
    unet=replace(UNET_XL, y_dim=None, context_dim=32),
    vae=replace(VAE, scale_factor=0.18215),
    text=(replace(SD2.text[0], config=replace(G, projection_dim=None)),),
)
CONFIGS = {"sd1": TINY, "sd2": TINY_SD2, "sdxl": TINY_XL}


def source(config: ModelConfig, more: dict[str, Tensor] | None = None) -> Checkpoint:
    tensors = tiny_tensors(config) | (more or {})
    return checkpoint_of(FakeSource(of_tensors(tensors), tensors, {KEY: config_to_json(config)}))


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize("name", CONFIGS)
def test_original_to_diffusers_to_original(name: str, tmp_path: Path) -> None:
    """Oracle: equality of every parameter and of the config."""
    first = source(CONFIGS[name])
    folder = convert(first, tmp_path / "folder", layout="diffusers")
    with open_checkpoint(folder) as middle:
        file = convert(middle, tmp_path / "model.safetensors")
        with open_checkpoint(file) as last:
            assert last.parts == middle.parts == first.parts
            assert last.config == middle.config
            for part in first.parts:
                state = last.state_dict(part)
                assert same(state, middle.state_dict(part))
                before = first.state_dict(part)
                assert same(state, {k: v for k, v in before.items() if k in state})
                assert len(state) == len(before) or name == "sd2"  # whose last layer diffusers never had
    if name != "sd2":
        assert last.config == CONFIGS[name]
    else:
        assert last.config is not None and (last.config.text[0].skip, last.config.text[0].config.layers) == (
            0,
            2,
        )


@pytest.mark.parametrize("name", CONFIGS)
def test_diffusers_loads_what_we_write(name: str, tmp_path: Path) -> None:
    """Oracle: UNet2DConditionModel, AutoencoderKL, CLIPTextModel and DDIMScheduler, strict about names and
    shapes."""
    diffusers, transformers = import_module("diffusers"), import_module("transformers")
    config = CONFIGS[name]
    checkpoint = source(config)
    folder = convert(checkpoint, tmp_path / "folder", layout="diffusers")
    unet, info = diffusers.UNet2DConditionModel.from_pretrained(folder / "unet", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    state = checkpoint.state_dict("unet")
    assert torch.equal(unet.conv_in.weight, state["input_blocks.0.0.weight"])
    assert sum(p.numel() for p in unet.parameters()) == sum(p.numel() for p in state.values())
    vae, info = diffusers.AutoencoderKL.from_pretrained(folder / "vae", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert vae.config.scaling_factor == config.vae.scale_factor
    scheduler = diffusers.DDIMScheduler.from_pretrained(folder / "scheduler")
    wanted = {"eps": "epsilon", "v": "v_prediction"}[config.prediction]
    assert scheduler.config.prediction_type == wanted
    assert scheduler.config.rescale_betas_zero_snr == config.zero_terminal_snr
    for use in config.text:
        pooled = use.config.projection_dim is not None
        cls = transformers.CLIPTextModelWithProjection if pooled else transformers.CLIPTextModel
        text, info = cls.from_pretrained(folder / use.part, output_loading_info=True)
        assert not info["missing_keys"] and not info["unexpected_keys"]
        ours = checkpoint.state_dict(use.part)
        kept = ours if name != "sd2" else {k: v for k, v in ours.items() if "layers.2." not in k}
        assert sum(p.numel() for p in text.parameters()) == sum(p.numel() for p in kept.values())


def test_networks_give_what_diffusers_gives(tmp_path: Path) -> None:
    """Oracle: diffusers' UNet on the folder we wrote, float64: names, heads and order of blocks are all right
    or it differs."""
    from minisd.models.unet import UNet

    diffusers = import_module("diffusers")
    checkpoint = source(TINY_XL)
    folder = convert(checkpoint, tmp_path / "folder", layout="diffusers")
    theirs = diffusers.UNet2DConditionModel.from_pretrained(folder / "unet").double().eval()
    with torch.device("meta"):
        ours = UNet(TINY_XL.unet)
    ours.load_state_dict(checkpoint.state_dict("unet", dtype=torch.float64), strict=True, assign=True)
    g = torch.Generator().manual_seed(1)
    x = torch.randn(2, 4, 8, 8, generator=g, dtype=torch.float64)
    context = torch.randn(2, 5, 56, generator=g, dtype=torch.float64)
    pooled, ids = (
        torch.randn(2, 96, generator=g, dtype=torch.float64),
        torch.tensor([[64.0, 64, 0, 0, 64, 64]] * 2),
    )
    with torch.no_grad():
        added = {"text_embeds": pooled, "time_ids": ids}
        wanted = theirs(x, 7, encoder_hidden_states=context, added_cond_kwargs=added).sample
        times = theirs.add_time_proj(ids.flatten()).reshape(2, -1).double()
        got = ours(x, torch.tensor([7.0]), context, torch.cat([pooled, times], dim=-1))
    assert (got - wanted).abs().max() <= 1e-10 * wanted.abs().max()


@pytest.mark.parametrize("name", FAMILY)
def test_configs_agree_with_the_published_ones(name: str) -> None:
    """Oracle: config.json of the released folders, for every key that both have and that says how a network
    is built."""
    data = manifest(name)
    config = checkpoint_of(FakeSource(of_rows(data["tensors"]))).config
    assert config is not None
    skipped = {
        "_class_name",
        "_diffusers_version",
        "sample_size",
        "upcast_attention",
        "force_upcast",
        "architectures",
    }
    skipped |= {"transformer_layers_per_block", "projection_dim", "num_hidden_layers", "mid_block_type"}
    written = {"unet": unet_json(config), "vae": vae_json(config)} | {
        u.part: text_json(u) for u in config.text
    }
    for part, ours in written.items():
        published = data["components"][part]["config"]
        for key in ours.keys() & published.keys() - skipped:
            assert ours[key] == published[key], (part, key)
        depths, mine = (c.get("transformer_layers_per_block", 1) for c in (published, ours))
        if part == "unet":
            kinds = published["down_block_types"]
            assert used_depths(depths, kinds) == used_depths(mine, kinds)


def used_depths(depths: object, kinds: list[str]) -> list[object]:
    """Of the levels that have attention; diffusers ignores the others' numbers."""
    per_level = depths if isinstance(depths, list) else [depths] * len(kinds)
    return [d for d, kind in zip(per_level, kinds, strict=True) if kind.startswith("CrossAttn")]


def test_precision_and_ema(tmp_path: Path) -> None:
    """Oracle: torch's own conversion, and the copies that were put in."""
    copies = {
        "model_ema." + k.removeprefix("model.").replace(".", ""): v + 1
        for k, v in tiny_tensors(TINY).items()
        if k.startswith("model.diffusion_model.")
    }
    checkpoint = source(TINY, copies)
    plain = checkpoint.state_dict("unet")
    half = convert(checkpoint, tmp_path / "half.safetensors", dtype="float16")
    with open_checkpoint(half) as written:
        assert not written.detection.has_ema
        assert same(written.state_dict("unet"), {k: v.half() for k, v in plain.items()})
    with open_checkpoint(convert(checkpoint, tmp_path / "ema.safetensors", ema=True)) as written:
        assert same(written.state_dict("unet"), {k: v + 1 for k, v in plain.items()})
    with open_checkpoint(convert(checkpoint, tmp_path / "both.safetensors", prune_ema=False)) as written:
        assert same(written.state_dict("unet"), plain)
        assert same(written.state_dict("unet", ema=True), {k: v + 1 for k, v in plain.items()})
    assert (
        half.read_bytes() == convert(checkpoint, tmp_path / "again.safetensors", dtype="float16").read_bytes()
    )


def test_markers_for_other_programs(tmp_path: Path) -> None:
    """Oracle: the marker tensors that ComfyUI and Forge look for in SDXL files."""
    with open_checkpoint(convert(source(TINY_XL), tmp_path / "v.safetensors")) as written:
        assert {"v_pred", "ztsnr"} <= written.source.tensors.keys()
        assert written.source.metadata["modelspec.prediction_type"] == "v"


def test_what_cannot_be_written(tmp_path: Path) -> None:
    """Oracle: a table of refusals; nothing is left in the target folder."""
    checkpoint = source(TINY)
    (tmp_path / "there").write_text("x")
    with pytest.raises(CheckpointError, match="'there' exists"):
        convert(checkpoint, tmp_path / "there")
    with pytest.raises(CheckpointError, match="layout is 'onnx'"):
        convert(checkpoint, tmp_path / "a", layout="onnx")
    with pytest.raises(CheckpointError, match="dtype is 'int8'"):
        convert(checkpoint, tmp_path / "a", dtype="int8")
    with pytest.raises(CheckpointError, match="EMA copy can be kept only"):
        convert(checkpoint, tmp_path / "a", prune_ema=False)
    uneven = replace(
        TINY, unet=replace(TINY.unet, num_res_blocks=(1, 2), depth_in=(1, 0, 0), depth_out=(0,) * 3 + (1, 1))
    )
    with pytest.raises(CheckpointError, match="residual blocks per level"):
        convert(source(uneven), tmp_path / "a", layout="diffusers")
    bare = replace(TINY, unet=replace(TINY.unet, depth_mid=0))
    with pytest.raises(CheckpointError, match="no attention in the middle"):
        convert(source(bare), tmp_path / "a", layout="diffusers")
    vae = {"quant_conv.weight": torch.zeros(8, 8, 1, 1)}
    broken = tiny_tensors(TINY) | {
        "first_stage_model.quant_conv.weight": vae["quant_conv.weight"] * float("nan")
    }
    nan = checkpoint_of(FakeSource(of_tensors(broken), broken, {KEY: config_to_json(TINY)}))
    for layout in ("original", "diffusers"):
        with pytest.raises(CheckpointError, match="not finite in the file"):
            convert(nan, tmp_path / "a", layout=layout)
    assert [p.name for p in tmp_path.iterdir()] == ["there"]


def test_model_index_names_the_pipeline(tmp_path: Path) -> None:
    """Oracle: the class names of diffusers' pipelines, which must exist."""
    diffusers = import_module("diffusers")
    folder = convert(source(TINY_XL), tmp_path / "folder", layout="diffusers")
    index = json.loads((folder / "model_index.json").read_text())
    assert index["_class_name"] == "StableDiffusionXLPipeline"
    assert all(hasattr(diffusers, name) for name in PIPELINES.values())
    assert SDXL_REFINER.family in {family for family, _ in PIPELINES}
