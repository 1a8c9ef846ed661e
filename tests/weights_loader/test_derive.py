"""Oracles: configs that made the shapes (any width and depth), and tables of hostile `minisd.config`
texts."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minisd.config import (
    FAMILIES,
    SD1,
    SD2,
    SDXL,
    ModelConfig,
    TAESDConfig,
    TextConfig,
    UNetConfig,
    VAEConfig,
)
from minisd.errors import CheckpointError
from minisd.weights_loader import keymap
from minisd.weights_loader.config_json import config_from_json, config_to_json
from minisd.weights_loader.derive import Heads, derive_text, derive_unet, derive_vae
from minisd.weights_loader.diffusers_config import norm_groups, text_numbers, unet_heads, vae_scale_factor
from minisd.weights_loader.expected import taesd_shapes, text_shapes, unet_shapes, vae_shapes
from minisd.weights_loader.rule import expected_theirs
from minisd.weights_loader.taesd import derive_taesd


@st.composite
def unets(draw: st.DrawFn) -> UNetConfig:
    """UNets of up to three levels with their own numbers of blocks and depths."""
    levels = draw(st.integers(1, 3))
    blocks = tuple(draw(st.lists(st.integers(1, 3), min_size=levels, max_size=levels)))
    depth = st.integers(0, 2)
    ins, outs = sum(blocks), sum(blocks) + levels
    return UNetConfig(
        in_channels=draw(st.integers(1, 9)),
        out_channels=draw(st.integers(1, 4)),
        model_channels=8 * draw(st.integers(1, 3)),
        channel_mult=tuple(draw(st.lists(st.integers(1, 4), min_size=levels, max_size=levels))),
        num_res_blocks=blocks,
        depth_in=tuple(draw(st.lists(depth, min_size=ins, max_size=ins))),
        depth_mid=draw(st.integers(1, 2)),  # so that the width of the text is in the file
        depth_out=tuple(draw(st.lists(depth, min_size=outs, max_size=outs))),
        context_dim=draw(st.integers(1, 40)),
        num_heads=2,
        head_dim=None,
        linear_proj=draw(st.booleans()),
        y_dim=draw(st.one_of(st.none(), st.integers(1, 40))),
    )


@settings(max_examples=60, deadline=None)
@given(unets())
def test_any_unet_is_derived_from_either_naming(config: UNetConfig) -> None:
    """Oracle: the config that the shapes were made from."""
    heads = Heads(2, None, "given")
    assert derive_unet(unet_shapes(config), "original", heads) == config
    theirs = expected_theirs(keymap.unet_rules(config))
    assert len(theirs) == len(unet_shapes(config))  # no two of ours share a name
    assert derive_unet(theirs, "diffusers", heads) == config


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.integers(1, 4), min_size=1, max_size=4),
    st.integers(1, 3),
    st.integers(1, 5),
    st.integers(1, 5),
)
def test_any_vae_is_derived(mult: list[int], blocks: int, z: int, embed: int) -> None:
    """Oracle: the config that the shapes were made from."""
    config = VAEConfig(2, 3, 8, tuple(mult), blocks, z, embed, scale_factor=0.5)
    assert derive_vae(vae_shapes(config), "original", 0.5) == config
    for old in (False, True):
        theirs = expected_theirs(keymap.vae_rules(config, old_attention=old))
        assert derive_vae(theirs, "diffusers", 0.5) == config


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(1, 3), min_size=1, max_size=4))
def test_any_taesd_is_derived_from_either_half(blocks: list[int]) -> None:
    """Oracle: the config that the shapes were made from."""
    config = TAESDConfig(3, 5, 8, tuple(blocks))
    shapes = taesd_shapes(config)
    assert derive_taesd(shapes) == config
    for half in ("encoder.", "decoder."):
        assert derive_taesd({k: v for k, v in shapes.items() if k.startswith(half)}) == config


def test_text_encoders_are_derived_and_skip_follows_the_layers() -> None:
    """Oracle: the families' rows; SD2 with 23 layers uses its last, with 24 the last but one."""
    for family in FAMILIES.values():
        for use in family.text:
            config = replace(use.config, projection_dim=use.config.projection_dim if use.pooled else None)
            wanted = replace(use, config=config)
            assert derive_text(text_shapes(config), "hf", use) == wanted
            assert derive_text(expected_theirs(keymap.hf_rules(config, root="")), "hf-bare", use) == wanted
            openclip = expected_theirs(keymap.text_rules(use.config))  # as in files: projection pooled or not
            assert derive_text(openclip, "openclip", use) == wanted
    h = SD2.text[0]
    for layers, skip in ((24, 1), (23, 0), (22, 0)):
        config = replace(h.config, layers=layers, projection_dim=None)
        assert derive_text(text_shapes(config), "hf", h) == replace(h, config=config, skip=skip)
    narrow = TextConfig(vocab_size=9, max_length=5, width=128, layers=2, mlp_dim=7)
    assert derive_text(text_shapes(narrow), "hf", SD1.text[0]).config.num_heads == 2  # width / 64
    odd = replace(narrow, width=130)
    assert derive_text(text_shapes(odd), "hf", SD1.text[0]).config.num_heads == 2
    with pytest.raises(CheckpointError, match="does not divide by 3 heads"):
        derive_text(text_shapes(replace(narrow, width=200)), "hf", SD1.text[0])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"input_blocks.0.0.weight": None}, "'input_blocks.0.0.weight' is missing"),
        ({"input_blocks.0.0.weight": (0, 4, 3, 3)}, "cannot have this shape"),
        ({"input_blocks.0.0.weight": (7,)}, "expected one multiple of 7"),
        ({"input_blocks.1.0.out_layers.3.weight": (319, 320, 3, 3)}, "level 0 has the widths"),
    ],
)
def test_shapes_that_make_no_unet(change: dict[str, tuple[int, ...] | None], message: str) -> None:
    """Oracle: a table of damage and what its message names."""
    shapes: dict[str, Any] = unet_shapes(SD1.unet) | change
    shapes = {k: v for k, v in shapes.items() if v is not None}
    with pytest.raises(CheckpointError, match=message):
        derive_unet(shapes, "original")


def test_missing_output_blocks_are_counted() -> None:
    """Oracle: 12 output blocks for 8 residual blocks on four levels."""
    shapes = {k: v for k, v in unet_shapes(SD1.unet).items() if not k.startswith("output_blocks.11.")}
    with pytest.raises(CheckpointError, match="11 output blocks for 8 residual blocks .* expected 12"):
        derive_unet(shapes, "original")


@pytest.mark.parametrize(
    "config", [*FAMILIES.values(), replace(SDXL, prediction="v", zero_terminal_snr=True)]
)
def test_metadata_there_and_back(config: ModelConfig) -> None:
    """Oracle: the fields of the config."""
    said = config_from_json(config_to_json(config))
    assert (said.family, said.prediction, said.zero_terminal_snr) == (
        config.family,
        config.prediction,
        config.zero_terminal_snr,
    )
    assert (said.num_heads, said.head_dim) == (config.unet.num_heads, config.unet.head_dim)
    assert said.scale_factor == config.vae.scale_factor and said.schedule == config.schedule
    assert [said.text[u.part].skip for u in config.text] == [u.skip for u in config.text]


def changed(path: str, value: object) -> str:
    data: dict[str, Any] = json.loads(config_to_json(SDXL))
    *parents, last = path.split(".")
    place = data
    for key in parents:
        place = place[key]
    place[last] = value
    return json.dumps(data)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is not JSON"),
        ("[" * 15_000, "is not JSON"),
        ("7", "expected a JSON object"),
        ("{}", "lacks 'schedule'|lacks 'format'"),
        (" " * 30_000, "has 30,000 characters"),
        (changed("format", 2), r"format is '2'; expected a whole number in 1..1"),
        (changed("family", "sd3"), "family is 'sd3'; expected one of sd1"),
        (changed("extra", 1), "keys that are not known: 'extra'"),
        (changed("zero_terminal_snr", 1), "zero_terminal_snr is '1'; expected true or false"),
        (changed("size", True), "size is 'True'"),
        (changed("size", 10**400), "size is"),
        (changed("scale_factor", 10**400), "scale_factor is"),
        (changed("scale_factor", float("nan")), "scale_factor is 'nan'"),
        (changed("norm_groups", 0), r"config\.norm_groups is '0'"),
        (changed("vae_norm_groups", 32.0), "vae_norm_groups is '32.0'"),
        (changed("head_dim", None), "one of num_heads and head_dim"),
        (changed("num_heads", 8), "one of num_heads and head_dim"),
        (changed("schedule.beta_end", "0.1"), "schedule.beta_end is '0.1'"),
        (changed("text.text_encoder.activation", "exec"), "activation is 'exec'"),
        (changed("text.text_encoder.skip", -1), "skip is '-1'"),
        (changed("text.vae", {}), "text names"),
        (changed("text", []), "expected a JSON object"),
    ],
)
def test_metadata_is_not_believed(text: str, message: str) -> None:
    """Oracle: a table of wrong texts and what their refusal names."""
    with pytest.raises(CheckpointError, match=message):
        config_from_json(text)


def test_heads_from_a_folder() -> None:
    """Oracle: the released configs: [5, 10, 20, 20] means head width 64, 8 means 8 heads."""
    assert unet_heads('{"attention_head_dim": 8}', SD1.unet) == Heads(8, None, "unet/config.json")
    found = unet_heads('{"attention_head_dim": [5, 10, 20, 20]}', SD2.unet)
    assert found is not None and (found.num_heads, found.head_dim) == (None, 64)
    assert unet_heads("{}", SD1.unet) is None
    for text in (
        '{"attention_head_dim": [5, 10]}',
        '{"attention_head_dim": [5, 10, 20, 3]}',
        '{"attention_head_dim": "8"}',
    ):
        with pytest.raises(CheckpointError, match="heads"):
            unet_heads(text, SD2.unet)


def test_other_facts_from_a_folder() -> None:
    """Oracle: a table of values."""
    assert vae_scale_factor("{}") is None
    assert (norm_groups("{}", "here"), norm_groups('{"norm_num_groups": 8}', "here")) == (32, 8)
    with pytest.raises(CheckpointError, match="here: norm_num_groups is '-1'"):
        norm_groups('{"norm_num_groups": -1}', "here")
    assert vae_scale_factor('{"scaling_factor": 0.13025}') == 0.13025
    with pytest.raises(CheckpointError, match="scaling_factor is '0'"):
        vae_scale_factor('{"scaling_factor": 0}')
    assert text_numbers("{}", "here", SD1.text[0].config) == (12, "quick_gelu")
    with pytest.raises(CheckpointError, match="expected a divisor of 768"):
        text_numbers('{"num_attention_heads": 7}', "here", SD1.text[0].config)
    with pytest.raises(CheckpointError, match="hidden_act is 'relu'"):
        text_numbers('{"hidden_act": "relu"}', "here", SD1.text[0].config)
