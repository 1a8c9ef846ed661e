"""Oracles: published key lists of models and adapters (tests/data/manifests) and a table of what each of them
is."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from minisd.config import FAMILIES, UNetConfig
from minisd.errors import CheckpointError
from minisd.weights_loader.config_json import KEY, config_to_json
from minisd.weights_loader.detect import detect
from minisd.weights_loader.detection import Detection
from minisd.weights_loader.expected import unet_shapes
from minisd.weights_loader.prediction import NORM1
from minisd.weights_loader.source import TensorInfo
from tests.weights_loader.fake import of_rows, of_shapes
from tests.weights_loader.manifests import FAMILY, IN_CHANNELS, manifest

VARIANT = {4: "none", 9: "inpaint", 8: "ip2p", 5: "depth"}


def original(name: str) -> dict[str, TensorInfo]:
    return of_rows(manifest(name)["tensors"])


def folder(name: str) -> tuple[dict[str, TensorInfo], dict[str, str]]:
    data = manifest(name)
    infos: dict[str, TensorInfo] = {}
    metadata = {"scheduler/scheduler_config.json": json.dumps(data["scheduler"])}
    for part, component in data["components"].items():
        infos |= of_rows(component["tensors"], f"{part}/")
        metadata[f"{part}/config.json"] = json.dumps(component["config"])
    return infos, metadata


@pytest.mark.parametrize("name", FAMILY)
def test_published_original_files(name: str) -> None:
    """Oracle: the family row, which was checked against the published list by test_keymap."""
    found, row = detect(original(name), {}), FAMILY[name]
    assert (found.kind, found.family, found.refusal) == ("checkpoint", row.family, None)
    assert found.variant == VARIANT[IN_CHANNELS.get(name, 4)]
    assert found.config is not None
    assert found.config.unet == replace(row.unet, in_channels=IN_CHANNELS.get(name, 4))
    assert found.config.vae == row.vae
    for use, known in zip(found.config.text, row.text, strict=True):
        pooled = known.config.projection_dim if known.pooled else None
        assert use == replace(known, config=replace(known.config, projection_dim=pooled))
    assert list(found.parts) == ["unet", "vae", *(use.part for use in row.text)]
    assert found.has_ema == (name == "sd15-ip2p")
    assert found.prediction == "eps"
    assert found.prediction_sure == (name not in ("sd21-base", "sd21-v", "sdxl-base"))
    assert ("depth_model" in found.present) == (name == "sd2-depth")
    assert sum(found.parts["unet"].contents.dtypes.values()) == found.parts["unet"].contents.tensors


@pytest.mark.parametrize("name", FAMILY)
def test_published_diffusers_folders(name: str) -> None:
    """Oracle: the same family row; SD2's text encoder has 23 layers there and the last is used."""
    infos, metadata = folder(name)
    found, row = detect(infos, metadata), FAMILY[name]
    assert found.kind == "checkpoint" and found.config is not None
    unet = replace(row.unet, in_channels=IN_CHANNELS.get(name, 4))
    assert replace(found.config.unet, num_heads=None, head_dim=None) == replace(
        unet, num_heads=None, head_dim=None
    )
    assert [found.config.unet.heads(320 * m) for m in (1, 2, 4)] == [unet.heads(320 * m) for m in (1, 2, 4)]
    assert found.config.vae == row.vae
    assert found.prediction == ("v" if name == "sd21-v" else "eps") and found.prediction_sure
    assert found.config.size == (768 if name == "sd21-v" else row.size)
    for use, known in zip(found.config.text, row.text, strict=True):
        missing = known.config.layers - use.config.layers
        assert missing == (1 if row.family == "sd2" else 0)
        assert use.skip == known.skip - missing
        assert use.config.activation == known.config.activation
        assert use.config.num_heads == known.config.num_heads


KINDS = {
    "ControlNet SD1.5 original": ("controlnet", "sd1"),
    "ControlNet SDXL diffusers": ("controlnet", "sdxl"),
    "ControlNet-Union": ("controlnet", "sdxl"),
    "Control-LoRA": ("controlnet", "sdxl"),
    "t2iadapter_sd15": ("t2i_adapter", "sd1"),
    "t2iadapter_sdxl": ("t2i_adapter", "sdxl"),
    "t2iadapter_light": ("t2i_adapter", None),
    "ip-adapter_sd15": ("ip_adapter", "sd1"),
    "ip-adapter_sdxl": ("ip_adapter", "sdxl"),
    "ip-adapter-faceid_sd15": ("ip_adapter", "sd1"),
    "kohya_sd15": ("lora", "sd1"),
    "lcm-lora-sdv1-5": ("lora", "sd1"),
    "diffusers >= 0.20": ("lora", None),
    "diffusers < 0.20": ("lora", None),
    "PEFT DoRA": ("lora", None),
    "locon": ("lora", None),
    "loha": ("lora", None),
    "lokr_full_matrix": ("lora", None),
    "ia3": ("lora", None),
    "full": ("lora", None),
    "norm": ("lora", None),
    "glora": ("lora", None),
    "boft": ("lora", None),
    "RealESRGAN_x4plus (": ("upscaler", None),
    "ESRGAN old": ("upscaler", None),
    "realesr-general": ("upscaler", None),
    "CLIP ViT-H/14 vision": ("image_encoder", None),
    "CLIP ViT-L/14 vision": ("image_encoder", None),
    "taesd_encoder": ("taesd", None),
    "taesd_decoder": ("taesd", None),
    "taesd diffusers": ("taesd", None),
}


@pytest.mark.parametrize("label", KINDS)
def test_files_that_are_not_models(label: str) -> None:
    """Oracle: a table of kinds by the label of the published list."""
    rows = next(rows for name, rows in manifest("adapters").items() if name.startswith(label))
    found, (kind, family) = detect(of_rows(rows), {}), KINDS[label]
    assert found.kind == kind
    if family is not None:
        assert found.family == family
    if kind != "taesd":
        assert found.refusal is not None and "not a model" in found.refusal
        assert found.config is None and not found.parts


def test_lora_sentence_gives_rank_and_family() -> None:
    """Oracle: the sentence a person deserves, with the numbers of the published LCM-LoRA."""
    rows = next(rows for name, rows in manifest("adapters").items() if name.startswith("lcm-lora-sdv1-5"))
    refusal = detect(of_rows(rows), {}).refusal
    assert refusal is not None
    assert refusal.startswith(
        "this is a LoRA (rank 64, 278 modules) for SD1.x, not a model; load it as a LoRA"
    )


FOREIGN = {
    "model.diffusion_model.joint_blocks.0.x_block.attn.qkv.weight": "Stable Diffusion 3",
    "double_blocks.0.img_attn.qkv.weight": "Flux",
    "distilled_guidance_layer.in_proj.weight": "Chroma",
    "transformer_blocks.0.attn.add_k_proj.weight": "Stable Diffusion 3 or Flux",
    "model.diffusion_model.clip_txt_mapper.weight": "Cascade",
    "model.diffusion_model.input_blocks.1.1.time_stack.0.norm1.weight": "video",
    "down_blocks.0.motion_modules.0.temporal_transformer.norm.weight": "AnimateDiff",
    "model.diffusion_model.label_emb.weight": "x4 upscaler",
    "wholly.unknown": "without a network",
}


@pytest.mark.parametrize("name", FOREIGN)
def test_foreign_models_are_named(name: str) -> None:
    """Oracle: a table of one telling key each."""
    found = detect(of_shapes({name: (8, 8)}), {})
    assert found.kind == "foreign" and found.refusal is not None
    assert FOREIGN[name] in found.refusal


def test_unclip_and_odd_channels_are_refused() -> None:
    """Oracle: published shapes of SD2.1-unCLIP, and a UNet of 7 channels."""
    unclip = replace(FAMILIES["sd2"].unet, y_dim=2048)
    found = detect(of_shapes(unet_shapes(unclip), "model.diffusion_model."), {})
    assert found.kind == "foreign" and "unCLIP" in str(found.refusal)
    odd = replace(FAMILIES["sd1"].unet, in_channels=7)
    found = detect(of_shapes(unet_shapes(odd), "model.diffusion_model."), {})
    assert found.kind == "foreign" and "takes 7 channels" in str(found.refusal)


def test_a_vae_of_16_channels_is_refused() -> None:
    """Oracle: the shape of the latent convolution of SD3 and Flux."""
    rows = dict(manifest("vae-only")["tensors"])
    rows["decoder.conv_in.weight"] = ["F32", 512, 16, 3, 3]
    found = detect(of_rows(rows), {})
    assert found.kind == "foreign" and "16 latent channels" in str(found.refusal)


def test_single_parts() -> None:
    """Oracle: the published lists with one part kept, under every prefix in use."""
    vae = manifest("vae-only")["tensors"]
    for prefix in ("", "vae.", "first_stage_model."):
        assert detect(of_rows(vae, prefix), {}).kind == "vae"
    components = manifest("sd15")["components"]
    assert detect(of_rows(components["vae"]["tensors"]), {}).kind == "vae"
    old = {v: k for k, v in components["vae"]["legacy_names"].items()}
    renamed = {old.get(k, k): v for k, v in components["vae"]["tensors"].items()}
    assert detect(of_rows(renamed), {}).parts["vae"].contents.tensors == 248
    unet = detect(of_rows(components["unet"]["tensors"]), {})
    assert (unet.kind, unet.family, list(unet.parts)) == ("unet", "sd1", ["unet"])
    assert unet.config is not None and unet.config.unet == FAMILIES["sd1"].unet
    text = {k.removeprefix("text_model."): v for k, v in components["text_encoder"]["tensors"].items()}
    found = detect(of_rows(text), {})
    assert (found.kind, list(found.parts)) == ("text_encoder", ["text_encoder"])
    bigg = of_rows(manifest("sdxl-base")["components"]["text_encoder_2"]["tensors"])
    assert list(detect(bigg, {}).parts) == ["text_encoder_2"]


def test_unet_only_file_of_sdxl() -> None:
    """Oracle: SDXL's row; readers that look at text-encoder keys fail here."""
    rows = {
        k: v for k, v in manifest("sdxl-base")["tensors"].items() if k.startswith("model.diffusion_model.")
    }
    found = detect(of_rows(rows), {})
    assert found.family == "sdxl" and list(found.parts) == ["unet"]
    key = "input_blocks.4.1.transformer_blocks.0.attn2.to_k.weight is [640, 2048]"
    assert found.evidence[0] == f"{key}: text of width 2048, and a vector of 2816: SDXL"


SCALAR = {"v_pred": "v", "edm_vpred.sigma_max": "edm_v"}


@pytest.mark.parametrize("marker", SCALAR)
def test_marker_tensors(marker: str) -> None:
    """Oracle: a table of markers; any dtype and shape counts."""
    infos = original("sdxl-base") | {
        marker: TensorInfo(marker, torch.int64, (0,)),
        "ztsnr": TensorInfo("ztsnr", torch.float32, (0,)),
    }
    found = detect(infos, {})
    assert (found.prediction, found.zero_terminal_snr, found.prediction_sure) == (SCALAR[marker], True, True)


def sd2(metadata: dict[str, str], spread: float | None = None) -> Detection:
    def read(name: str) -> torch.Tensor:
        assert name == "model.diffusion_model." + NORM1
        return torch.tensor([-1.0, 1.0]) * (spread or 0.0)

    return detect(original("sd21-v"), metadata, read if spread is not None else None)


def test_sd2_prediction() -> None:
    """Oracle: the order of evidence of the field, from metadata to the statistic."""
    assert sd2({"modelspec.prediction_type": "v"}).prediction == "v"
    assert sd2({"modelspec.prediction_type": "epsilon"}, spread=1.0).prediction == "eps"
    assert sd2({"modelspec.architecture": "stable-diffusion-v2-768-v"}).prediction == "v"
    assert sd2({"global_step": "110000"}).prediction == "v"
    assert sd2({"global_step": "220000"}).prediction == "eps"
    found = sd2({}, spread=0.1)
    assert (found.prediction, found.prediction_sure) == ("v", False)
    assert found.config is not None and found.config.size == 768
    found = sd2({}, spread=0.08)
    assert (found.prediction, found.prediction_sure) == ("eps", False)
    inpaint = detect(original("sd2-inpainting"), {}, lambda name: torch.full((2,), float("nan")))
    assert (inpaint.prediction, inpaint.prediction_sure) == ("eps", True)


def test_distilled_depths_are_derived() -> None:
    """Oracle: the config that made the shapes; depths of Segmind's smaller SDXL, and one residual block per
    level."""
    sdxl = FAMILIES["sdxl"].unet
    small = replace(sdxl, depth_in=(0, 0, 2, 2, 4, 4), depth_mid=4, depth_out=(4, 4, 4, 2, 2, 2, 0, 0, 0))
    koala = replace(
        sdxl, num_res_blocks=(1, 1, 1), depth_in=(0, 2, 10), depth_mid=10, depth_out=(10, 10, 2, 2, 0, 0)
    )
    for unet in (small, koala):
        found = detect(of_shapes(unet_shapes(unet), "model.diffusion_model."), {})
        assert found.family == "sdxl" and found.config is not None and found.config.unet == unet


def test_names_of_a_tiny_model_come_from_its_metadata() -> None:
    """Oracle: the config that made file and metadata."""
    unet = UNetConfig(
        model_channels=32,
        channel_mult=(1, 2),
        num_res_blocks=(1, 1),
        depth_in=(0, 1),
        depth_out=(1, 1, 0, 0),
        context_dim=24,
        num_heads=None,
        head_dim=16,
        linear_proj=True,
        in_channels=9,
        norm_groups=16,
    )
    config = replace(FAMILIES["sd1"], unet=unet, prediction="v", size=64, concat="inpaint")
    infos = of_shapes(unet_shapes(unet), "model.diffusion_model.")
    found = detect(infos, {KEY: config_to_json(config)})
    assert found.config == config
    for wrong in (replace(config, concat="none"), replace(config, size_conditioning="sdxl")):
        with pytest.raises(CheckpointError, match="the metadata is not of this file"):
            detect(infos, {KEY: config_to_json(wrong)})
    ungrouped = replace(config, unet=replace(unet, norm_groups=24))
    with pytest.raises(CheckpointError, match="24 groups of GroupNorm do not divide"):
        detect(infos, {KEY: config_to_json(ungrouped)})
    with pytest.raises(CheckpointError, match="must say its heads in the metadata minisd.config"):
        detect(infos, {})  # 64 does not divide 32


def test_layers_that_a_merge_dropped() -> None:
    """Oracle: SDXL uses the output of CLIP-L's layer 10 whether or not layer 11 is in the file."""
    rows = dict(manifest("sdxl-base")["tensors"])
    gone = ("layers.11.", "final_layer_norm")
    base = "conditioner.embedders.0.transformer."
    rows = {k: v for k, v in rows.items() if not (k.startswith(base) and any(g in k for g in gone))}
    found = detect(of_rows(rows), {})
    assert found.config is not None
    use = found.config.text[0]
    assert (use.config.layers, use.skip, use.config.final_layer_norm) == (11, 0, False)


def test_hostile_names_do_not_cost_memory() -> None:
    """Oracle: detection ends, and says that nothing is known."""
    dotted = {"." * 500 + str(n): (1,) for n in range(2000)}
    assert detect(of_shapes(dotted), {}).kind == "foreign"
    assert detect({}, {}).kind == "foreign"
