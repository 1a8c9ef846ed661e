"""Tiny control networks as files, with random weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file

from minisd.config import ControlNetConfig, T2IAdapterConfig, UNetConfig
from minisd.weights_loader.control_keymap import controlnet_rules, t2i_adapter_rules
from minisd.weights_loader.rule import theirs_from
from tests import tiny

HINTS = (8, 16, 16, 32)  # 8 pixels per latent
Weights = dict[str, torch.Tensor]


def control_config(unet: UNetConfig, types: int | None = None) -> ControlNetConfig:
    return ControlNetConfig(unet, hint_widths=HINTS, control_types=types)


def control_weights(config: ControlNetConfig, seed: int = 1, scale: float = 0.3) -> Weights:
    """Random; what the zero convolutions give is made smaller, so that pictures stay pictures."""
    shapes = {r.ours: r.shape for r in controlnet_rules(config)}
    weights = tiny.random_weights(shapes, seed, torch.float32)
    small = ("zero_convs", "middle_block_out")
    return {k: v * scale if k.startswith(small) else v for k, v in weights.items()}


def write_control(path: Path, config: ControlNetConfig, layout: str = "original", seed: int = 1) -> Path:
    weights = control_weights(config, seed)
    if layout == "diffusers":
        weights = dict(theirs_from(controlnet_rules(config), weights.__getitem__))
    else:
        weights = {f"control_model.{k}": v for k, v in weights.items()}
    save_file({k: v.contiguous() for k, v in weights.items()}, path)
    return path


def adapter_config(unet: UNetConfig) -> T2IAdapterConfig:
    return T2IAdapterConfig(widths=tuple(unet.model_channels * m for m in unet.channel_mult))


def adapter_weights(config: T2IAdapterConfig, seed: int = 1) -> Weights:
    shapes = {r.ours: r.shape for r in t2i_adapter_rules(config)}
    return tiny.random_weights(shapes, seed, torch.float32)


def write_adapter(path: Path, config: T2IAdapterConfig, seed: int = 1) -> Path:
    save_file(adapter_weights(config, seed), path)
    return path


def map_of(width: int, height: int, seed: int = 0) -> Image.Image:
    """A picture with large and small structure."""
    y, x = np.mgrid[:height, :width] / 16.0
    waves = np.stack([np.sin(x + seed), np.cos(y * 1.7), np.sin(x * y / 3)], axis=-1)
    return Image.fromarray(((waves + 1) * 127.5).astype(np.uint8))
