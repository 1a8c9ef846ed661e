"""Oracle: diffusers' ControlNetModel, ControlNetUnionModel and UNet2DConditionModel, float64, 1e-10."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from diffusers.models.controlnets.controlnet import ControlNetModel
from diffusers.models.controlnets.controlnet_union import ControlNetUnionModel

from minisd.config import ControlNetConfig, UNetConfig
from minisd.models.controlnet import ControlNet
from minisd.models.edits import Residuals
from minisd.weights_loader.control_keymap import controlnet_rules
from tests import oracles, tiny

WIDTHS = (8, 16, 32)
FAMILIES = {"sd1": tiny.TINY_SD1, "sd2": tiny.TINY_SD2, "sdxl": tiny.TINY_SDXL}
POOLED = 24
SMALL = replace(tiny.TINY_SD1.unet, channel_mult=(1, 2, 2), num_res_blocks=(1, 1, 1), norm_groups=16)
SMALL = replace(SMALL, depth_in=(1, 1, 0), depth_out=(0, 0, 1, 1, 1, 1))  # levels of the embedded model


def ours(config: ControlNetConfig, seed: int = 1) -> tuple[ControlNet, dict[str, torch.Tensor]]:
    weights = tiny.random_weights({r.ours: r.shape for r in controlnet_rules(config)}, seed)
    with torch.device("meta"):
        network = ControlNet(config)
    tiny.filled(network, weights)
    return network, weights


def theirs(
    kind: type[ControlNetModel] | type[ControlNetUnionModel],
    config: ControlNetConfig,
    weights: dict[str, torch.Tensor],
    **more: object,
) -> ControlNetModel | ControlNetUnionModel:
    unet = config.unet
    depths = oracles.per_level(unet.depth_in, list(unet.num_res_blocks))
    channels = tuple(unet.model_channels * m for m in unet.channel_mult)
    vector: dict[str, object] = {}
    if unet.y_dim is not None:
        vector = {"addition_embed_type": "text_time", "addition_time_embed_dim": time_dim(unet)}
        vector["projection_class_embeddings_input_dim"] = unet.y_dim
    with torch.device("meta"):
        network = kind(
            in_channels=unet.in_channels,
            conditioning_channels=config.hint_channels,
            block_out_channels=channels,
            layers_per_block=unet.num_res_blocks[0],
            down_block_types=tuple("CrossAttnDownBlock2D" if d else "DownBlock2D" for d in depths),
            transformer_layers_per_block=[d or unet.depth_mid for d in depths],
            cross_attention_dim=unet.context_dim,
            attention_head_dim=[unet.heads(c)[0] for c in channels],  # their name for the number of heads
            use_linear_projection=unet.linear_proj,
            norm_num_groups=unet.norm_groups,
            conditioning_embedding_out_channels=config.hint_widths,
            **vector,
            **more,
        )
    oracles.load(network, controlnet_rules(config), weights)
    return network


def inputs(unet: UNetConfig, hints: int = 1) -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(2)
    size = 16
    made = {
        "x": torch.randn(2, unet.in_channels, size, size, generator=g, dtype=torch.float64),
        "timesteps": torch.tensor([981.0, 7.0], dtype=torch.float64),
        "context": torch.randn(2, 7, unet.context_dim, generator=g, dtype=torch.float64),
        "hint": torch.rand(hints, 2, 3, 4 * size, 4 * size, generator=g, dtype=torch.float64),
    }
    if unet.y_dim is not None:
        made["pooled"] = torch.randn(2, POOLED, generator=g, dtype=torch.float64)
        made["ids"] = torch.rand(2, 6, generator=g, dtype=torch.float64) * 500
        waves = oracle_waves(made["ids"].flatten(), time_dim(unet)).reshape(2, -1)
        made["y"] = torch.cat([made["pooled"], waves], dim=-1)
    return made


def time_dim(unet: UNetConfig) -> int:
    """Sinusoids per number of SDXL's vector."""
    assert unet.y_dim is not None
    return (unet.y_dim - POOLED) // 6


def oracle_waves(values: torch.Tensor, dim: int) -> torch.Tensor:
    """Sinusoids of Vaswani et al. 2017, cosines first; float32 angles, as both sides compute them."""
    exponent = -torch.arange(dim // 2, dtype=torch.float32) * (9.210340371976184 / (dim // 2))
    angle = values.float()[:, None] * exponent.exp()[None]
    return torch.cat([angle.cos(), angle.sin()], dim=-1).double()


def added(made: dict[str, torch.Tensor]) -> dict[str, torch.Tensor] | None:
    return {"text_embeds": made["pooled"], "time_ids": made["ids"]} if "ids" in made else None


def gaps(mine: tuple[torch.Tensor, ...], other: list[torch.Tensor]) -> float:
    assert len(mine) == len(other)
    assert all(r.abs().max() > 1e-3 for r in mine)  # zeros would agree whatever they come from
    return max(float((a - b).abs().max()) for a, b in zip(mine, other, strict=True))


@pytest.mark.parametrize("name", [*FAMILIES, "small"])
def test_residuals_as_diffusers(name: str) -> None:
    unet = SMALL if name == "small" else FAMILIES[name].unet
    config = ControlNetConfig(unet, hint_widths=WIDTHS)
    network, weights = ours(config)
    other = theirs(ControlNetModel, config, weights)
    made = inputs(unet)
    with torch.inference_mode():
        mine = network(made["x"], made["timesteps"], made["context"], made["hint"][0], made.get("y"))
        down, mid = other(
            made["x"],
            made["timesteps"],
            made["context"],
            made["hint"][0],
            added_cond_kwargs=added(made),
            return_dict=False,
        )
    assert gaps(mine, [*down, mid]) <= 1e-10


@pytest.mark.parametrize("types", [(3,), (0, 5)], ids=["one type", "two types"])
def test_union_as_diffusers(types: tuple[int, ...]) -> None:
    """One image: over a batch the published code mixes images, which is not wanted."""
    # the published code tells types with as many sinusoids as sizes
    unet = replace(FAMILIES["sdxl"].unet, y_dim=POOLED + 6 * 256)
    config = ControlNetConfig(unet, hint_widths=WIDTHS, control_types=6)
    network, weights = ours(config)
    other = theirs(
        ControlNetUnionModel, config, weights, num_control_type=6, num_trans_channel=32, num_proj_channel=32
    )
    for module in other.modules():  # heads that divide the width
        assert not isinstance(module, torch.nn.MultiheadAttention) or module.num_heads == 8
    made = {k: v[..., :1, :, :, :] if k == "hint" else v[:1] for k, v in inputs(config.unet, 2).items()}
    kinds = torch.zeros(1, 6, dtype=torch.float64)
    kinds[0, list(types)] = 1
    hints = [made["hint"][i] for i in range(len(types))]
    with torch.inference_mode():
        features = [network.hint_features(h) for h in hints]
        mine = network.residuals(made["x"], made["timesteps"], made["context"], features, made["y"], types)
        down, mid = other(
            made["x"],
            made["timesteps"],
            made["context"],
            controlnet_cond=hints,
            control_type=kinds,
            control_type_idx=list(types),
            conditioning_scale=[1.0] * len(types),
            added_cond_kwargs=added(made),
            return_dict=False,
        )
    assert gaps(mine, [*down, mid]) <= 1e-10


def test_residuals_reach_the_unet_as_in_diffusers() -> None:
    unet = FAMILIES["sd1"].unet
    weights = tiny.network_weights(FAMILIES["sd1"])["unet"]
    mine, other = tiny.unet(unet, weights), oracles.diffusers_unet(unet, weights)
    network, _ = ours(ControlNetConfig(unet, hint_widths=WIDTHS))
    made = inputs(unet)
    args = (made["x"], made["timesteps"], made["context"])
    with torch.inference_mode():
        *skips, middle = network(*args, made["hint"][0])
        got = mine(*args, residuals=Residuals(tuple(skips), middle))
        want = other(
            *args,
            down_block_additional_residuals=tuple(skips),
            mid_block_additional_residual=middle,
            return_dict=False,
        )[0]
        plain = mine(*args)
    assert (got - plain).abs().max() > 1e-3
    assert (got - want).abs().max() <= 1e-10


def test_no_residuals_are_no_change() -> None:
    unet = FAMILIES["sd1"].unet
    network = tiny.unet(unet, tiny.network_weights(FAMILIES["sd1"])["unet"])
    made = inputs(unet)
    args = (made["x"], made["timesteps"], made["context"])
    with torch.inference_mode():
        assert torch.equal(network(*args), network(*args, residuals=Residuals()))
