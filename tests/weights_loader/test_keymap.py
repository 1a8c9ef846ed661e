"""Oracles: published key lists (tests/data/manifests), their maps, and diffusers' own converter."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from minisd.config import SD1, SDXL, TAESDConfig, TextConfig, UNetConfig, VAEConfig
from minisd.weights_loader import keymap
from minisd.weights_loader.expected import taesd_shapes, text_shapes, unet_shapes, vae_shapes
from minisd.weights_loader.rule import Rule, expected_theirs, theirs_from
from minisd.weights_loader.taesd import taesd_rules
from tests.weights_loader.manifests import FAMILY, IN_CHANNELS, manifest, shapes

TINY_UNET = UNetConfig(
    model_channels=32,
    channel_mult=(1, 2),
    num_res_blocks=(1, 1),
    depth_in=(1, 2),
    depth_mid=2,
    depth_out=(2, 2, 1, 1),
    context_dim=24,
    num_heads=4,
    y_dim=40,
)
TINY_VAE = VAEConfig(ch=32, ch_mult=(1, 2), num_res_blocks=1)
TINY_TEXT = TextConfig(
    vocab_size=99, max_length=9, width=16, layers=2, num_heads=2, mlp_dim=24, projection_dim=12
)
TINY_TAESD = TAESDConfig(width=8, num_blocks=(1, 2, 1))


def unet_config(name: str) -> UNetConfig:
    return replace(FAMILY[name].unet, in_channels=IN_CHANNELS.get(name, 4))


@pytest.mark.parametrize("name", FAMILY)
def test_names_and_shapes_are_those_of_the_published_files(name: str) -> None:
    """Oracle: the key list of the released original file and of the diffusers folder."""
    data, family = manifest(name), FAMILY[name]
    unet = keymap.unet_rules(unet_config(name))
    assert unet_shapes(unet_config(name)) == shapes(data["tensors"], "model.diffusion_model.")
    assert expected_theirs(unet) == shapes(data["components"]["unet"]["tensors"])
    vae = keymap.vae_rules(family.vae)
    assert vae_shapes(family.vae) == shapes(data["tensors"], "first_stage_model.")
    assert expected_theirs(vae) == shapes(data["components"]["vae"]["tensors"])
    old = expected_theirs(keymap.vae_rules(family.vae, old_attention=True))
    legacy = data["components"]["vae"]["legacy_names"]
    assert {legacy.get(k, k): v for k, v in old.items()} == expected_theirs(vae)
    for use in family.text:
        present = shapes(data["tensors"], use.prefix)
        present = {k: v for k, v in present.items() if not k.endswith(("position_ids", "logit_scale"))}
        if use.layout == "hf":
            assert text_shapes(use.config) == present
        else:
            assert expected_theirs(keymap.text_rules(use.config)) == present


@pytest.mark.parametrize("name", FAMILY)
def test_every_pair_and_operation_of_the_map(name: str) -> None:
    """Oracle: the [original, diffusers, op] tables checked tensor by tensor against diffusers' converter."""
    family = FAMILY[name]
    rows = [
        ("model.diffusion_model." + r.ours, r.theirs, op(r)) for r in keymap.unet_rules(unet_config(name))
    ]
    rows += [("first_stage_model." + r.ours, r.theirs, op(r)) for r in keymap.vae_rules(family.vae)]
    for use in family.text:
        config = use.config
        if family.family == "sd2":  # diffusers drops the last block and the projection
            config = replace(config, layers=23, projection_dim=None)
        if use.layout == "openclip":
            rows += [(use.prefix + r.theirs, r.ours, op(r)) for r in keymap.text_rules(config)]
        else:
            rows += [(use.prefix + name, name, "same") for name in text_shapes(config)]
    wanted = {
        tuple(p) for p in manifest(name)["pairs"] if p[2] != "drop" and not p[0].endswith("position_ids")
    }
    assert set(rows) == wanted
    assert len(rows) == len(wanted)


def op(rule: Rule) -> str:
    """In the words of the tables: the weight alone is squeezed, and rows have an end."""
    return f"rows[{rule.start}:{rule.start + rule.shape[0]}]" if rule.op == "rows" else rule.op


def test_taesd() -> None:
    """Oracle: the key lists of taesd_encoder, taesd_decoder and AutoencoderTiny."""
    items = manifest("adapters")
    config = TAESDConfig()
    ours = taesd_shapes(config)
    assert {k: v for k, v in ours.items() if k.startswith("encoder.")} == {
        f"encoder.{k}": v for k, v in shapes(items["taesd_encoder (original)"]).items()
    }
    assert {k: v for k, v in ours.items() if k.startswith("decoder.")} == {
        f"decoder.{k}": v for k, v in shapes(items["taesd_decoder (original)"]).items()
    }
    assert expected_theirs(taesd_rules(config)) == shapes(items["taesd diffusers AutoencoderTiny"])


@pytest.mark.parametrize(
    "rules",
    [
        keymap.unet_rules(TINY_UNET),
        keymap.vae_rules(TINY_VAE),
        keymap.vae_rules(TINY_VAE, old_attention=True),
        keymap.text_rules(TINY_TEXT),
        keymap.hf_rules(TINY_TEXT, root=""),
        taesd_rules(TINY_TAESD),
    ],
    ids=["unet", "vae", "vae-old", "openclip", "hf", "taesd"],
)
def test_there_and_back_is_the_identity(rules: keymap.Rules) -> None:
    """Oracle: equality of tensors whose every element is different."""
    ours: dict[str, torch.Tensor] = {}
    start = 0
    for rule in rules:
        count = int(torch.tensor(rule.shape).prod())
        ours[rule.ours] = torch.arange(start, start + count).reshape(rule.shape)
        start += count
    theirs = dict(theirs_from(rules, ours.__getitem__))
    assert {k: tuple(v.shape) for k, v in theirs.items()} == expected_theirs(rules)
    assert len(ours) == len(rules)
    for rule in rules:
        back = rule.ours_from(theirs[rule.theirs])
        assert torch.equal(back, ours[rule.ours]), rule
        assert back.is_contiguous()


def test_networks_have_these_parameters() -> None:
    """Oracle: state_dict() of our own networks on the meta device, for published and for uneven configs."""
    from minisd.models.clip import TextEncoder
    from minisd.models.taesd import TAESD
    from minisd.models.unet import UNet
    from minisd.models.vae import AutoencoderKL

    uneven = replace(
        TINY_UNET, num_res_blocks=(1, 2), depth_in=(0, 1, 0), depth_mid=0, depth_out=(2, 0, 1, 0, 1)
    )
    with torch.device("meta"):
        pairs = [
            *((UNet(c), unet_shapes(c)) for c in (SD1.unet, SDXL.unet, TINY_UNET, uneven)),
            *((AutoencoderKL(c), vae_shapes(c)) for c in (SD1.vae, TINY_VAE)),
            *(
                (TextEncoder(c), text_shapes(c))
                for c in (TINY_TEXT, replace(TINY_TEXT, final_layer_norm=False))
            ),
            *((TAESD(c), taesd_shapes(c)) for c in (TAESDConfig(), TINY_TAESD)),
        ]
    for network, wanted in pairs:
        assert {k: tuple(v.shape) for k, v in network.state_dict().items()} == wanted


@pytest.mark.parametrize("name", ["sd15", "sd21-v", "sdxl-base", "sdxl-refiner"])
def test_diffusers_own_converter_agrees(name: str) -> None:
    """Oracle: diffusers.loaders.single_file_utils on meta tensors: equal key sets and shapes."""
    from diffusers.loaders import single_file_utils as oracle

    data = manifest(name)
    checkpoint = {k: torch.empty(v, device="meta") for k, v in shapes(data["tensors"]).items()}
    unet = oracle.convert_ldm_unet_checkpoint(dict(checkpoint), data["components"]["unet"]["config"])
    vae = oracle.convert_ldm_vae_checkpoint(dict(checkpoint), data["components"]["vae"]["config"])
    assert {k: tuple(v.shape) for k, v in unet.items()} == expected_theirs(
        keymap.unet_rules(unet_config(name))
    )
    assert {k: tuple(v.shape) for k, v in vae.items()} == expected_theirs(keymap.vae_rules(FAMILY[name].vae))


def test_a_matrix_serves_for_a_1x1_convolution_and_nothing_else() -> None:
    """Oracle: a table of shapes."""
    rule = Rule("proj_in.weight", (8, 8, 1, 1), "proj_in.weight")
    assert rule.accepts((8, 8), (8, 8, 1, 1)) and rule.accepts((8, 8, 1, 1), (8, 8, 1, 1))
    assert not rule.accepts((64,), (8, 8, 1, 1)) and not rule.accepts((4, 16), (8, 8, 1, 1))
    assert not Rule("a", (8,), "a").accepts((1, 8), (8,))
    stacked = Rule("q", (4, 4), "in_proj", "rows", 4)
    assert not stacked.accepts((8, 4), (12, 4))
