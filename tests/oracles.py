"""The same networks from diffusers and transformers, with weights of ours carried over by our key map."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from diffusers import AutoencoderKL, AutoencoderTiny, UNet2DConditionModel
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from minisd.config import TAESDConfig, TextConfig, UNetConfig, VAEConfig
from minisd.weights_loader.keymap import Rules, hf_rules, unet_rules, vae_rules
from minisd.weights_loader.rule import theirs_from
from minisd.weights_loader.taesd import taesd_rules

Weights = Mapping[str, Tensor]


def carried(rules: Rules, weights: Weights) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in theirs_from(rules, weights.__getitem__)}


def load(network: torch.nn.Module, rules: Rules, weights: Weights) -> None:
    """Networks come on the meta device: their own random initialisation would cost more than the test."""
    network.load_state_dict(carried(rules, weights), strict=True, assign=True)
    network.requires_grad_(False).eval()


def per_level(depths: tuple[int, ...], per: list[int]) -> list[int]:
    """One depth per level, from one per residual block."""
    out, start = [], 0
    for count in per:
        assert len(set(depths[start : start + count])) == 1, "diffusers has one depth per level"
        out.append(depths[start])
        start += count
    return out


def diffusers_unet(config: UNetConfig, weights: Weights, **more: object) -> UNet2DConditionModel:
    depths = per_level(config.depth_in, list(config.num_res_blocks))
    channels = [config.model_channels * m for m in config.channel_mult]
    down = ["CrossAttnDownBlock2D" if d else "DownBlock2D" for d in depths]
    up = ["CrossAttnUpBlock2D" if d else "UpBlock2D" for d in reversed(depths)]
    blocks = [d or config.depth_mid for d in depths]
    vector: dict[str, object] = {}
    if config.y_dim is not None:
        vector = {"addition_embed_type": "text_time", "addition_time_embed_dim": 8}
        vector["projection_class_embeddings_input_dim"] = config.y_dim
    with torch.device("meta"):
        network = UNet2DConditionModel(
            in_channels=config.in_channels,
            out_channels=config.out_channels,
            block_out_channels=channels,
            layers_per_block=list(config.num_res_blocks),
            down_block_types=down,
            up_block_types=up,
            transformer_layers_per_block=blocks,
            cross_attention_dim=config.context_dim,
            attention_head_dim=[config.heads(c)[0] for c in channels],  # their name for the number of heads
            use_linear_projection=config.linear_proj,
            **vector,
            **more,
        )
    load(network, unet_rules(config), weights)
    return network


def diffusers_vae(config: VAEConfig, weights: Weights, **more: object) -> AutoencoderKL:
    levels = len(config.ch_mult)
    with torch.device("meta"):
        network = AutoencoderKL(
            in_channels=config.in_channels,
            out_channels=config.out_channels,
            latent_channels=config.z_channels,
            block_out_channels=[config.ch * m for m in config.ch_mult],
            layers_per_block=config.num_res_blocks,
            down_block_types=["DownEncoderBlock2D"] * levels,
            up_block_types=["UpDecoderBlock2D"] * levels,
            scaling_factor=config.scale_factor,
            **more,
        )
    load(network, vae_rules(config), weights)
    return network


def diffusers_taesd(config: TAESDConfig, weights: Weights) -> AutoencoderTiny:
    widths = [config.width] * len(config.num_blocks)
    with torch.device("meta"):
        network = AutoencoderTiny(
            encoder_block_out_channels=widths,
            decoder_block_out_channels=widths,
            num_encoder_blocks=config.num_blocks,
            num_decoder_blocks=tuple(reversed(config.num_blocks)),
            latent_channels=config.latent_channels,
        )
    load(network, taesd_rules(config), weights)
    return network


def transformers_text(config: TextConfig, weights: Weights) -> CLIPTextModel | CLIPTextModelWithProjection:
    projected = config.projection_dim is not None
    theirs = CLIPTextConfig(
        vocab_size=config.vocab_size,
        hidden_size=config.width,
        intermediate_size=config.mlp_dim,
        projection_dim=config.projection_dim or config.width,
        num_hidden_layers=config.layers,
        num_attention_heads=config.num_heads,
        max_position_embeddings=config.max_length,
        hidden_act=config.activation,
        bos_token_id=49406,
        eos_token_id=49407,
        pad_token_id=1,
    )
    with torch.device("meta"):
        network = (CLIPTextModelWithProjection if projected else CLIPTextModel)(theirs)
    for module in network.modules():  # a buffer that no file holds
        if hasattr(module, "position_ids"):
            module.position_ids = torch.arange(config.max_length)[None]
    # transformers 5 dropped the outer name from CLIPTextModel alone
    root = "text_model." if any(k.startswith("text_model.") for k in network.state_dict()) else ""
    load(network, hf_rules(config, root=root), weights)
    return network
