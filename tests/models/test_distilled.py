"""Oracle: diffusers' UNet2DConditionModel with the published configs of distilled models; float64, 1e-10."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from diffusers import UNet2DConditionModel

from minisd.config import SD1, SDXL, UNetConfig
from minisd.errors import RequestError
from minisd.request import Request
from minisd.weights_loader.derive import derive_unet
from minisd.weights_loader.expected import unet_shapes
from minisd.weights_loader.keymap import unet_rules
from tests import oracles, tiny
from tests.models.test_controlnet import POOLED, inputs, time_dim

CROSS, PLAIN = "CrossAttn{}Block2D", "{}Block2D"
SDXL_SMALL = replace(SDXL.unet, num_res_blocks=(1, 1, 1), mid_blocks=0, depth_mid=0)
MODELS: dict[str, tuple[UNetConfig, dict[str, object]]] = {
    "ssd-1b": (
        replace(
            SDXL.unet,
            depth_in=(0, 0, 2, 2, 4, 4),
            depth_mid=0,
            mid_blocks=1,
            depth_out=(4, 4, 10, 2, 1, 1, 0, 0, 0),
        ),
        {
            "mid_block_type": "UNetMidBlock2D",
            "transformer_layers_per_block": [1, [2, 2], [4, 4]],
            "reverse_transformer_layers_per_block": [[4, 4, 10], [2, 1, 1], 1],
        },
    ),
    "vega": (
        replace(
            SDXL.unet,
            depth_in=(0, 0, 1, 1, 2, 2),
            depth_mid=0,
            mid_blocks=1,
            depth_out=(2, 2, 2, 1, 1, 1, 0, 0, 0),
        ),
        {"mid_block_type": "UNetMidBlock2D", "transformer_layers_per_block": [1, 1, 2]},
    ),
    "koala-700m": (
        replace(SDXL_SMALL, depth_in=(0, 2, 5), depth_out=(5, 5, 2, 2, 0, 0)),
        {"mid_block_type": None, "transformer_layers_per_block": [1, 2, 5]},
    ),
    "koala-1b": (
        replace(SDXL_SMALL, depth_in=(0, 2, 6), depth_out=(6, 6, 2, 2, 0, 0), depth_mid=6, mid_blocks=2),
        {"transformer_layers_per_block": [1, 2, 6]},
    ),
    "tiny-sd": (
        replace(
            SD1.unet,
            channel_mult=(1, 2, 4),
            num_res_blocks=(1, 1, 1),
            depth_in=(1, 1, 1),
            depth_mid=0,
            mid_blocks=0,
            depth_out=(1, 1, 1, 1, 1, 1),
        ),
        {"mid_block_type": None},
    ),
}


def theirs(config: UNetConfig, more: dict[str, object]) -> UNet2DConditionModel:
    depths = oracles.per_level(tuple(bool(d) for d in config.depth_in), list(config.num_res_blocks))
    channels = [config.model_channels * m for m in config.channel_mult]
    vector: dict[str, object] = {}
    if config.y_dim is not None:
        vector = {"addition_embed_type": "text_time", "addition_time_embed_dim": time_dim(config)}
        vector["projection_class_embeddings_input_dim"] = config.y_dim
    with torch.device("meta"):
        return UNet2DConditionModel(
            block_out_channels=channels,
            layers_per_block=config.num_res_blocks[0],
            down_block_types=[(CROSS if d else PLAIN).format("Down") for d in depths],
            up_block_types=[(CROSS if d else PLAIN).format("Up") for d in reversed(depths)],
            cross_attention_dim=config.context_dim,
            attention_head_dim=[config.heads(c)[0] for c in channels],  # their name for the number of heads
            use_linear_projection=config.linear_proj,
            **vector,
            **more,
        )


@pytest.mark.parametrize("name", MODELS)
def test_config_from_names_and_shapes(name: str) -> None:
    """At full size, in both layouts; diffusers' own names."""
    config, more = MODELS[name]
    shapes = {k: tuple(v.shape) for k, v in theirs(config, more).state_dict().items()}
    assert derive_unet(shapes, "diffusers") == config
    assert derive_unet(unet_shapes(config), "original") == config
    assert {r.theirs for r in unet_rules(config)} == set(shapes)


@pytest.mark.parametrize("name", ["ssd-1b", "koala-700m", "tiny-sd"])
def test_as_diffusers(name: str) -> None:
    config, more = MODELS[name]
    y_dim = None if config.y_dim is None else POOLED + 6 * 8
    config = replace(
        config, model_channels=32, context_dim=32, y_dim=y_dim, head_dim=16 if config.head_dim else None
    )
    weights = tiny.random_weights(unet_shapes(config), 3)
    mine, other = tiny.unet(config, weights), theirs(config, more)
    oracles.load(other, unet_rules(config), weights)
    made = inputs(config)
    vector = {"text_embeds": made["pooled"], "time_ids": made["ids"]} if "ids" in made else None
    with torch.inference_mode():
        got = mine(made["x"], made["timesteps"], made["context"], made.get("y"))
        want = other(
            made["x"], made["timesteps"], made["context"], added_cond_kwargs=vector, return_dict=False
        )[0]
    assert got.abs().max() > 0.1 and (got - want).abs().max() <= 1e-10


def test_rules_that_act_in_the_middle_are_refused() -> None:
    model = replace(tiny.TINY["sd1"], unet=replace(tiny.TINY["sd1"].unet, depth_mid=0))
    with pytest.raises(RequestError, match="no attention in its middle"):
        Request(pag_scale=1.0).for_model(model, seed=1)
    assert Request().for_model(model, seed=1).seed == 1
