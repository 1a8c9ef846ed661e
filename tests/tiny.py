"""Tiny models of every family and variant: the structure of the published ones, almost none of the width.

`TINY` holds the configs. Weights are random, a pure function of the seed, and scaled so that activations stay
near 1 (what a wrong GroupNorm eps changes is then far above rounding). `network_weights` names them as our
networks do, `write_checkpoint` writes them as the single files of the families' authors are laid out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from minisd.config import (
    SD1,
    SD2,
    SDXL,
    SDXL_REFINER,
    ModelConfig,
    TAESDConfig,
    TextUse,
    UNetConfig,
    VAEConfig,
)
from minisd.model import Model
from minisd.models.clip import TextEncoder
from minisd.models.taesd import TAESD
from minisd.models.unet import UNet
from minisd.models.vae import AutoencoderKL
from minisd.placement import DTYPES, Plan, make_plan
from minisd.weights_loader.config_json import KEY, config_to_json
from minisd.weights_loader.expected import Shapes, taesd_shapes, text_shapes, unet_shapes, vae_shapes
from minisd.weights_loader.keymap import text_rules
from minisd.weights_loader.rule import theirs_from

Network = TypeVar("Network", bound=nn.Module)
WIDTH = 32  # of text encoders and of the UNet's finest level: GroupNorm has 32 groups
VAE = VAEConfig(ch=32, ch_mult=(1, 2, 2, 2), num_res_blocks=1)
TINY_TAESD = TAESDConfig(width=16)


def tiny_unet(family: UNetConfig, **changes: object) -> UNetConfig:
    """The family's UNet 32 and 64 channels wide, at most two transformer blocks where it has ten."""
    base = replace(
        family,
        model_channels=WIDTH,
        channel_mult=tuple(min(m, 2) for m in family.channel_mult),
        depth_in=tuple(min(d, 2) for d in family.depth_in),
        depth_mid=min(family.depth_mid, 2),
        depth_out=tuple(min(d, 2) for d in family.depth_out),
        head_dim=None if family.head_dim is None else 16,
    )
    return replace(base, **changes)  # type: ignore[arg-type]


def tiny_text(use: TextUse) -> TextUse:
    # not square: a forgotten transpose cannot hide
    pooled = 24 if use.config.projection_dim is not None else None
    small = replace(use.config, width=WIDTH, layers=3, num_heads=4, mlp_dim=48, projection_dim=pooled)
    return replace(use, config=small)


def tiny(family: ModelConfig, **unet: object) -> ModelConfig:
    text = tuple(tiny_text(use) for use in family.text)
    return replace(
        family,
        unet=tiny_unet(family.unet, context_dim=WIDTH * len(text), **unet),
        vae=replace(VAE, scale_factor=family.vae.scale_factor),
        text=text,
        size=64,
    )


TINY_SD1, TINY_SD2 = tiny(SD1), tiny(SD2)
TINY_SDXL = tiny(SDXL, y_dim=24 + 6 * 8)
TINY_REFINER = tiny(SDXL_REFINER, y_dim=24 + 5 * 8)


def with_channels(config: ModelConfig, in_channels: int, **changes: object) -> ModelConfig:
    unet = replace(config.unet, in_channels=in_channels)
    return replace(config, unet=unet, **changes)  # type: ignore[arg-type]


TINY: dict[str, ModelConfig] = {
    "sd1": TINY_SD1,
    "sd1-inpaint": with_channels(TINY_SD1, 9, concat="inpaint"),
    "sd1-ip2p": with_channels(TINY_SD1, 8, concat="ip2p"),
    "sd2-eps": TINY_SD2,
    "sd2-v": replace(TINY_SD2, prediction="v"),
    "sd2-depth": with_channels(TINY_SD2, 5, concat="depth"),
    "sdxl": TINY_SDXL,
    "sdxl-inpaint": with_channels(TINY_SDXL, 9, concat="inpaint"),
    "sdxl-refiner": TINY_REFINER,
}


def random_weights(shapes: Shapes, seed: int, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    """Matrices and convolutions keep the variance, norms scale by about 1; rounded to dtype at the end."""
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name, shape in shapes.items():
        value = torch.randn(shape, generator=generator, dtype=torch.float64)
        if "embedding" in name and len(shape) == 2:
            value *= 0.5
        elif len(shape) >= 2:
            value /= math.prod(shape[1:]) ** 0.5
        else:
            value = value * 0.1 + (1.0 if name.endswith("weight") else 0.0)
        weights[name] = value.to(dtype)
    return weights


def network_weights(
    config: ModelConfig, *, seed: int = 0, dtype: torch.dtype = torch.float64
) -> dict[str, dict[str, Tensor]]:
    """{part: state dict} of a whole model, under our names."""
    shapes = {"unet": unet_shapes(config.unet), "vae": vae_shapes(config.vae)}
    shapes |= {use.part: text_shapes(use.config) for use in config.text}
    return {part: random_weights(s, seed * 10 + i, dtype) for i, (part, s) in enumerate(shapes.items())}


def filled(network: nn.Module, weights: Mapping[str, Tensor]) -> nn.Module:
    """A network built on the meta device, with these weights."""
    network.load_state_dict(weights, strict=True, assign=True)
    return network.requires_grad_(False).eval()


def unet(config: UNetConfig, weights: Mapping[str, Tensor]) -> UNet:
    with torch.device("meta"):
        network = UNet(config)
    filled(network, weights)
    return network


def vae(config: VAEConfig, weights: Mapping[str, Tensor]) -> AutoencoderKL:
    with torch.device("meta"):
        network = AutoencoderKL(config)
    filled(network, weights)
    return network


def text_encoder(use: TextUse, weights: Mapping[str, Tensor]) -> TextEncoder:
    with torch.device("meta"):
        network = TextEncoder(use.config)
    filled(network, weights)
    return network


def taesd(config: TAESDConfig = TINY_TAESD, *, seed: int = 0, dtype: torch.dtype = torch.float64) -> TAESD:
    with torch.device("meta"):
        network = TAESD(config)
    filled(network, random_weights(taesd_shapes(config), seed, dtype))
    return network


def original_tensors(config: ModelConfig, weights: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """All tensors under the names of an original single file."""
    tensors = {f"model.diffusion_model.{k}": v for k, v in weights["unet"].items()}
    tensors |= {f"first_stage_model.{k}": v for k, v in weights["vae"].items()}
    for use in config.text:
        part = weights[use.part]
        if use.layout == "openclip":
            part = dict(theirs_from(text_rules(use.config), part.__getitem__))
        tensors |= {use.prefix + k: v for k, v in part.items()}
    return tensors


def write_checkpoint(
    path: Path,
    config: ModelConfig,
    *,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    declare: bool = True,
) -> Path:
    """A safetensors file in the original layout. `declare`: its metadata says what shapes cannot tell."""
    tensors = original_tensors(config, network_weights(config, seed=seed, dtype=dtype))
    contiguous = {k: v.contiguous() for k, v in tensors.items()}
    save_file(contiguous, path, metadata={KEY: config_to_json(config)} if declare else None)
    return path


def laid_out(network: Network, plan: Plan, part: str) -> Network:
    """In the memory layout that the plan gives convolutions: their bits depend on it."""
    if part in plan.channels_last.value:
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # of torch's stubs
    return network


def tiny_model(name: str, *, seed: int = 0, dtype: str = "float32", tiny_vae: bool = False) -> Model:
    """A model without a file, placed by the planner as a loaded one."""
    config = TINY[name]
    weights = network_weights(config, seed=seed, dtype=DTYPES[dtype])
    elements = {part: sum(t.numel() for t in state.values()) for part, state in weights.items()}
    small = taesd(seed=seed, dtype=DTYPES[dtype]) if tiny_vae else None
    if small is not None:
        elements["taesd"] = sum(p.numel() for p in small.parameters())
    plan = make_plan(elements, device="cpu", dtype=dtype)
    return Model(
        name=f"tiny-{name}",
        config=config,
        text_encoders=tuple(text_encoder(use, weights[use.part]) for use in config.text),
        unet=laid_out(unet(config.unet, weights["unet"]), plan, "unet"),
        vae=laid_out(vae(config.vae, weights["vae"]), plan, "vae"),
        plan=plan,
        tiny_vae=None if small is None else laid_out(small, plan, "taesd"),
    )
