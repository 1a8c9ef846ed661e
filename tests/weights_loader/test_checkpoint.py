"""Oracles: published key lists, tables of damaged files with their sentences, and equality of small
tensors."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from minisd.config import FAMILIES, SD1, SDXL, ModelConfig, TextConfig, UNetConfig, VAEConfig
from minisd.errors import CheckpointError
from minisd.weights_loader import keymap
from minisd.weights_loader.checkpoint import Checkpoint, checkpoint_of, open_checkpoint
from minisd.weights_loader.config_json import KEY, config_to_json
from minisd.weights_loader.expected import taesd_shapes, text_shapes, unet_shapes, vae_shapes
from minisd.weights_loader.quantised import quantised_view
from minisd.weights_loader.rule import theirs_from
from minisd.weights_loader.source import TensorInfo
from tests.weights_loader.fake import FakeSource, of_rows, of_tensors
from tests.weights_loader.manifests import FAMILY, manifest

UNET = UNetConfig(
    model_channels=32,
    channel_mult=(1, 2),
    num_res_blocks=(1, 1),
    depth_in=(1, 0),
    depth_out=(0, 0, 1, 1),
    context_dim=24,
    num_heads=4,
)
VAE = VAEConfig(ch=32, ch_mult=(1, 2), num_res_blocks=1)
TEXT = TextConfig(vocab_size=40, max_length=7, width=24, layers=2, num_heads=3, mlp_dim=20)
TINY = replace(SD1, unet=UNET, vae=VAE, text=(replace(SD1.text[0], config=TEXT),), size=64)


def tiny_tensors(config: ModelConfig = TINY, seed: int = 0) -> dict[str, Tensor]:
    """An original single file of this config, random."""
    g = torch.Generator().manual_seed(seed)
    tensors = {
        "model.diffusion_model." + k: torch.randn(s, generator=g) for k, s in unet_shapes(config.unet).items()
    }
    tensors |= {
        "first_stage_model." + k: torch.randn(s, generator=g) for k, s in vae_shapes(config.vae).items()
    }
    for use in config.text:
        ours = {k: torch.randn(s, generator=g) for k, s in text_shapes(use.config).items()}
        if use.layout == "openclip":
            ours = dict(theirs_from(keymap.text_rules(use.config), ours.__getitem__))
        tensors |= {use.prefix + k: v for k, v in ours.items()}
    return tensors


def tiny(tensors: dict[str, Tensor] | None = None, name: str = "model.safetensors") -> Checkpoint:
    tensors = tiny_tensors() if tensors is None else tensors
    source = FakeSource(of_tensors(tensors), tensors, {KEY: config_to_json(TINY)}, name)
    return checkpoint_of(quantised_view(source))


def expected(checkpoint: Checkpoint) -> dict[str, dict[str, tuple[int, ...]]]:
    config = checkpoint.config
    assert config is not None
    return {
        "unet": unet_shapes(config.unet),
        "vae": vae_shapes(config.vae),
        **{use.part: text_shapes(use.config) for use in config.text},
    }


@pytest.mark.parametrize("name", FAMILY)
@pytest.mark.parametrize("layout", ["original", "diffusers"])
def test_every_published_file_loads(name: str, layout: str) -> None:
    """Oracle: the shapes of our networks for the family; each tensor of a part is read, and leftovers are the
    documented."""
    data = manifest(name)
    if layout == "original":
        infos = of_rows(data["tensors"] | data["optional_tensors"])
        metadata = {}
    else:
        infos = {}
        for part, component in data["components"].items():
            infos |= of_rows(component["tensors"] | component["optional_tensors"], f"{part}/")
        metadata = {"scheduler/scheduler_config.json": json.dumps(data["scheduler"])}
    source = FakeSource(infos, metadata=metadata)
    checkpoint = checkpoint_of(source)
    wanted = expected(checkpoint)
    assert set(checkpoint.parts) == set(wanted)
    for part, shapes in wanted.items():
        state = checkpoint.state_dict(part, dtype=torch.float16, allow_nonfinite=True)
        assert {k: tuple(v.shape) for k, v in state.items()} == shapes
        assert {v.dtype for v in state.values()} == {torch.float16}
    report = checkpoint.report()
    assert report.loadable and not report.unknown and not report.absent
    unread = sum(report.unread.values())
    copies = {n for n in infos if n.startswith("model_ema.diffusion")} if name == "sd15-ip2p" else set()
    plain = {n for n in infos if n.startswith("model.diffusion_model.")} if copies else set()
    assert set(source.reads) >= copies
    assert not set(source.reads) & plain  # instruct-pix2pix draws with its EMA copy
    assert len(set(source.reads)) + len(plain) + unread == len(infos)
    allowed = (
        "noise table",
        "marker",
        "positions",
        "scale of CLIP",
        "state of",
        "depth estimator",
        "stray",
        "not pooled",
    )
    assert all(reason.startswith(allowed) for reason in report.unread)


@pytest.mark.parametrize("name", ["sd15", "sd21-base", "sdxl-base"])
def test_what_may_be_absent(name: str) -> None:
    """Oracle: the published list of what readers must not require."""
    data = manifest(name)
    patterns = [
        re.escape(p.split(" and ")[0].split(" (")[0]).replace(r"\*", ".*") for p in data["may_be_absent"]
    ]
    rows = {k: v for k, v in data["tensors"].items() if not any(re.fullmatch(p, k) for p in patterns)}
    assert len(rows) < len(data["tensors"])
    checkpoint = checkpoint_of(FakeSource(of_rows(rows)))
    for part in checkpoint.parts:
        checkpoint.check(part)


def test_float_position_ids_and_names_without_text_model() -> None:
    """Oracle: a merge with position_ids in F16 and NovelAI's names loads as the published file does."""
    rows = dict(manifest("sd15")["tensors"])
    base = "cond_stage_model.transformer."
    rows = {k.replace(base + "text_model.", base): v for k, v in rows.items()}
    rows[base + "embeddings.position_ids"] = ["F16", 1, 77]
    checkpoint = checkpoint_of(FakeSource(of_rows(rows)))
    state = checkpoint.state_dict("text_encoder", allow_nonfinite=True)
    assert {k: tuple(v.shape) for k, v in state.items()} == text_shapes(FAMILIES["sd1"].text[0].config)


def test_values_arrive_unchanged() -> None:
    """Oracle: the tensors that were put into the file."""
    tensors = tiny_tensors()
    checkpoint = tiny(tensors)
    assert checkpoint.config == TINY
    for part, prefix in {"unet": "model.diffusion_model.", "vae": "first_stage_model."}.items():
        for name, value in checkpoint.state_dict(part).items():
            assert torch.equal(value, tensors[prefix + name])
    half = checkpoint.state_dict("unet", dtype=torch.float16)
    assert all(torch.equal(v, tensors["model.diffusion_model." + k].half()) for k, v in half.items())


def test_projection_in_either_orientation() -> None:
    """Oracle: x @ P of open_clip equals x @ W.T of ours."""
    text = replace(TEXT, projection_dim=12)
    use = replace(SDXL.text[1], config=text)
    config = replace(
        SDXL,
        unet=replace(UNET, y_dim=40, context_dim=48),
        vae=VAE,
        text=(replace(SDXL.text[0], config=TEXT), use),
    )
    tensors = tiny_tensors(config)
    metadata = {KEY: config_to_json(config)}
    old, new = use.prefix + "text_projection", use.prefix + "text_projection.weight"
    p = tensors[old]
    state = checkpoint_of(FakeSource(of_tensors(tensors), tensors, metadata)).state_dict("text_encoder_2")
    assert torch.equal(state["text_projection.weight"], p.t())
    tensors[new] = tensors.pop(old).t().contiguous()
    state = checkpoint_of(FakeSource(of_tensors(tensors), tensors, metadata)).state_dict("text_encoder_2")
    assert torch.equal(state["text_projection.weight"], p.t())


def test_ema_by_choice() -> None:
    """Oracle: the copies that were put into the file under names without dots."""
    tensors = tiny_tensors()
    copies = {
        "model_ema." + k.removeprefix("model.").replace(".", ""): v + 1
        for k, v in tensors.items()
        if k.startswith("model.diffusion_model.")
    }
    checkpoint = tiny(tensors | copies)
    assert checkpoint.detection.has_ema
    plain, ema = checkpoint.state_dict("unet"), checkpoint.state_dict("unet", ema=True)
    assert all(torch.equal(ema[k], plain[k] + 1) for k in plain)
    assert "an EMA copy is in the file" in checkpoint.ema_choice()[1]
    assert "asked for" in str(checkpoint.report(ema=True).unet_weights)
    with pytest.raises(CheckpointError, match="no EMA copy"):
        tiny().state_dict("unet", ema=True)


NAME = "model.diffusion_model.input_blocks.0.0.weight"


def test_missing_surplus_and_misshaped_are_named() -> None:
    """Oracle: the sentences of the reliability table (L26 to L28)."""
    tensors = tiny_tensors()
    gone = [k for k in tensors if "input_blocks.1.0.emb_layers" in k]
    with pytest.raises(
        CheckpointError, match=r"UNet: 2 of \d+ tensors missing: 'model.*emb_layers.1"
    ) as error:
        tiny({k: v for k, v in tensors.items() if k not in gone}).state_dict("unet")
    assert "taken for an SD1.x checkpoint" in str(error.value)
    with pytest.raises(
        CheckpointError, match="1 tensors are not of it: 'model.diffusion_model.extra.weight'"
    ):
        tiny(tensors | {"model.diffusion_model.extra.weight": torch.zeros(1)}).state_dict("vae")
    wrong = "model.diffusion_model.middle_block.0.in_layers.0.weight"
    with pytest.raises(CheckpointError, match=r"middle_block.0.in_layers.0.weight' is \[63\]; needs \[64\]"):
        tiny(tensors | {wrong: torch.zeros(63)}).state_dict("unet")
    with pytest.raises(CheckpointError, match="quantised weights"):
        tiny(tensors | {NAME: tensors[NAME].to(torch.int8)}).state_dict("unet")
    report = tiny(tensors | {"what.is.this": torch.zeros(1)}).report()
    assert report.unknown == ("what.is.this",) and not report.loadable
    assert "what.is.this" in str(report)


def test_unknown_tensors_can_be_allowed() -> None:
    """Oracle: the same state dict as without them."""
    tensors = tiny_tensors()
    infos = of_tensors(tensors | {"stray": torch.zeros(1)})
    source = FakeSource(infos, tensors, {KEY: config_to_json(TINY)})
    state = checkpoint_of(source, allow_unknown=True).state_dict("vae")
    assert state.keys() == vae_shapes(VAE).keys()


def test_values_that_are_not_finite_are_refused() -> None:
    """Oracle: the position of the NaN that was put in (L24); infinity made by converting is told apart."""
    tensors = tiny_tensors()
    bad = tensors[NAME].clone()
    bad[1, 2, 0, 1] = float("nan")
    with pytest.raises(
        CheckpointError, match=r"1 values in .* not finite in the file, first at \[1, 2, 0, 1\]"
    ):
        tiny(tensors | {NAME: bad}).state_dict("unet")
    assert (
        tiny(tensors | {NAME: bad})
        .state_dict("unet", allow_nonfinite=True)["input_blocks.0.0.weight"]
        .isnan()
        .any()
    )
    large = tensors | {NAME: tensors[NAME] * 1e6}
    with pytest.raises(CheckpointError, match="not finite as float16"):
        tiny(large).state_dict("unet", dtype=torch.float16)
    assert tiny(large).state_dict("unet", dtype=torch.bfloat16)


def test_matrices_for_1x1_convolutions() -> None:
    """Oracle: the same values; some tools write proj_in of SD1 as a matrix and the VAE's attention
    likewise."""
    tensors = tiny_tensors()
    flat = {k: v.flatten(1) if k.endswith("attn_1.q.weight") else v for k, v in tensors.items()}
    first = "model.diffusion_model.input_blocks.1.1.proj_in.weight"
    flat[first] = tensors[first].flatten(1)
    ours = tiny(flat)
    assert torch.equal(ours.state_dict("unet")["input_blocks.1.1.proj_in.weight"], tensors[first])
    q = "encoder.mid.attn_1.q.weight"
    assert torch.equal(ours.state_dict("vae")[q], tensors["first_stage_model." + q])


def test_scaled_fp8() -> None:
    """Oracle: weight = fp8 * scale, in float32."""
    tensors = tiny_tensors()
    stored, scale = tensors[NAME].to(torch.float8_e4m3fn), torch.tensor(0.37)
    changed = tensors | {
        NAME: stored,
        NAME.replace(".weight", ".scale_weight"): scale,
        NAME.replace(".weight", ".scale_input"): torch.tensor(1.0),
        "model.diffusion_model.scaled_fp8": torch.zeros(0, dtype=torch.float8_e4m3fn),
    }
    state = tiny(changed).state_dict("unet", dtype=torch.float16)
    assert torch.equal(state["input_blocks.0.0.weight"], (stored.float() * scale).half())
    assert tiny(changed).state_dict("unet")["input_blocks.0.0.weight"].dtype == torch.float32
    plain = tiny(tensors | {NAME: stored}).state_dict("unet", dtype=torch.float32)
    assert torch.equal(plain["input_blocks.0.0.weight"], stored.float())


def test_a_file_name_means_nothing() -> None:
    """Oracle: SDXL keys under names of other models are SDXL, and a LoRA called a model is a LoRA."""
    infos = of_rows(manifest("sdxl-base")["tensors"])
    for name in ("wan-flux-lens.safetensors", "sd15-inpainting-lora.ckpt"):
        assert checkpoint_of(FakeSource(infos, name=name)).detection.family == "sdxl"


def test_adapters_open_and_are_refused_as_models() -> None:
    """Oracle: the sentence of L29."""
    rows = next(r for n, r in manifest("adapters").items() if n.startswith("lcm-lora-sdv1-5"))
    checkpoint = checkpoint_of(FakeSource(of_rows(rows), name="dreamy_model.safetensors"))
    assert checkpoint.report().kind == "lora" and not checkpoint.report().unknown
    with pytest.raises(
        CheckpointError, match=r"this is a LoRA \(rank 64, 278 modules\) for SD1.x, not a model"
    ):
        checkpoint.state_dict("unet")


def test_a_pruned_file_says_what_is_missing_and_takes_it_from_another() -> None:
    """Oracle: the tensors of the other file; the scale of the latents stays the UNet's (L30)."""
    tensors = tiny_tensors()
    unet = {k: v for k, v in tensors.items() if k.startswith("model.")}
    pruned = tiny(unet)
    assert pruned.report().absent == ("text_encoder", "vae")
    with pytest.raises(CheckpointError, match=r"holds no vae \(only unet\); take the vae from another file"):
        pruned.state_dict("vae")
    vae = {
        k.removeprefix("first_stage_model."): v * 2 for k, v in tensors.items() if k.startswith("first_stage")
    }
    text = {
        k.removeprefix("cond_stage_model.transformer.text_model."): v
        for k, v in tensors.items()
        if "cond" in k
    }
    meta = {KEY: config_to_json(TINY)}
    whole = pruned.swap("vae", checkpoint_of(FakeSource(of_tensors(vae), vae)))
    whole = whole.swap("text_encoder", checkpoint_of(FakeSource(of_tensors(text), text, meta)))
    assert set(whole.parts) == {"unet", "vae", "text_encoder"} and not whole.report().absent
    assert whole.config == TINY
    assert torch.equal(whole.state_dict("vae")["quant_conv.weight"], vae["quant_conv.weight"])
    state = whole.state_dict("text_encoder")
    assert state.keys() == text_shapes(TEXT).keys()
    with pytest.raises(CheckpointError, match="cannot be swapped"):
        whole.swap("unet", tiny())
    other = replace(TINY, text=(replace(TINY.text[0], config=replace(TEXT, width=30)),))
    wide = tiny_tensors(other)
    with pytest.raises(
        CheckpointError, match="text encoders of width 30, but the UNet attends to text of width 24"
    ):
        whole.swap(
            "text_encoder", checkpoint_of(FakeSource(of_tensors(wide), wide, {KEY: config_to_json(other)}))
        )


def test_taesd_halves_and_layouts() -> None:
    """Oracle: the names of TAESD(config), and the values of the file."""
    items = manifest("adapters")
    for label, half in (("taesd_encoder (original)", "encoder."), ("taesd_decoder (original)", "decoder.")):
        checkpoint = checkpoint_of(FakeSource(of_rows(items[label])))
        wanted = {k: v for k, v in taesd_shapes(checkpoint.taesd_config).items() if k.startswith(half)}
        state = checkpoint.state_dict("taesd")
        assert {k: tuple(v.shape) for k, v in state.items()} == wanted
    both = checkpoint_of(FakeSource(of_rows(items["taesd diffusers AutoencoderTiny"])))
    state = both.state_dict("taesd")
    assert {k: tuple(v.shape) for k, v in state.items()} == taesd_shapes(both.taesd_config)
    assert both.taesd_config.num_blocks == (1, 3, 3, 3)


def write_folder(root: Path, tensors: dict[str, Tensor], variant: str = "") -> None:
    for part, prefix, rules in (
        ("unet", "model.diffusion_model.", keymap.unet_rules(UNET)),
        ("vae", "first_stage_model.", keymap.vae_rules(VAE)),
        ("text_encoder", "cond_stage_model.transformer.", keymap.hf_rules(TEXT)),
    ):
        (root / part).mkdir(parents=True, exist_ok=True)
        stem = "model" if part == "text_encoder" else "diffusion_pytorch_model"
        found = {k: v.contiguous() for k, v in theirs_from(rules, lambda n, p=prefix: tensors[p + n])}
        save_file(found, root / part / f"{stem}{variant}.safetensors")


def test_folders(tmp_path: Path) -> None:
    """Oracle: the single file with the same tensors; variants are taken when asked for or alone."""
    tensors = tiny_tensors()
    (tmp_path / "scheduler").mkdir()
    scheduler = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True, "beta_start": 0.001}
    (tmp_path / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler))
    write_folder(tmp_path, tensors, ".fp16")
    (tmp_path / "unet" / "config.json").write_text(json.dumps({"attention_head_dim": 4}))
    (tmp_path / "vae" / "config.json").write_text(json.dumps({"scaling_factor": 0.5}))
    text = {"num_attention_heads": 3, "hidden_act": "gelu"}
    (tmp_path / "text_encoder" / "config.json").write_text(json.dumps(text))
    with open_checkpoint(tmp_path) as checkpoint:
        config = checkpoint.config
        assert config is not None
        assert config.unet == UNET and config.vae == replace(VAE, scale_factor=0.5)
        assert config.text[0].config == replace(TEXT, activation="gelu")
        assert (config.prediction, config.zero_terminal_snr, config.schedule.beta_start) == ("v", True, 0.001)
        single = tiny(tensors)
        for part in single.parts:
            ours, theirs = checkpoint.state_dict(part), single.state_dict(part)
            assert ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)
    plain = {k: v + 1 for k, v in tensors.items()}
    write_folder(tmp_path, plain)
    name = "input_blocks.0.0.weight"
    for variant, wanted in ((None, plain), ("fp16", tensors)):
        with open_checkpoint(tmp_path, variant=variant) as checkpoint:
            assert torch.equal(checkpoint.state_dict("unet")[name], wanted[NAME])
    with pytest.raises(CheckpointError, match="no weights in variant 'ema'"):
        open_checkpoint(tmp_path, variant="ema")
    with pytest.raises(CheckpointError, match="is a folder without unet"):
        open_checkpoint(tmp_path / "scheduler")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not JSON"),
        ("[1]", "expected a JSON object"),
        ('{"prediction_type": ["v"]}', "prediction_type is"),
        ('{"beta_start": "x"}', "beta_start is 'x'"),
        ('{"num_train_timesteps": 1e9}', "num_train_timesteps"),
        ('{"trained_betas": [0.1]}', "trained_betas"),
        ('{"beta_schedule": "squaredcos_cap_v2"}', "beta_schedule"),
    ],
)
def test_scheduler_configs_are_not_believed(text: str, message: str) -> None:
    """Oracle: a table of wrong values and what their refusal names."""
    tensors = tiny_tensors()
    source = FakeSource(of_tensors(tensors), tensors, {"scheduler/scheduler_config.json": text})
    with pytest.raises(CheckpointError, match=message):
        checkpoint_of(source)


def test_prediction_by_the_caller() -> None:
    """Oracle: what was asked for, recorded as such."""
    infos: dict[str, TensorInfo] = of_rows(manifest("sd21-v")["tensors"])
    checkpoint = checkpoint_of(FakeSource(infos), prediction="v")
    assert checkpoint.config is not None and checkpoint.config.prediction == "v"
    assert "asked for by the caller" in checkpoint.report().evidence[-1]
    assert json.dumps(checkpoint.report().to_dict())
