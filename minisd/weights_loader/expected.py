"""Every parameter of a network with its shape, from its config: what a state dict of ours must hold."""

from __future__ import annotations

from minisd.config import TAESDConfig, TextConfig, UNetConfig, VAEConfig
from minisd.weights_loader.keymap import Rules, hf_rules, unet_rules, vae_rules
from minisd.weights_loader.taesd import taesd_rules

Shapes = dict[str, tuple[int, ...]]


def _shapes(rules: Rules) -> Shapes:
    return {rule.ours: rule.shape for rule in rules}


def unet_shapes(config: UNetConfig) -> Shapes:
    """Of `minisd.models.unet.UNet(config)`: ldm names without `model.diffusion_model.`."""
    return _shapes(unet_rules(config))


def vae_shapes(config: VAEConfig) -> Shapes:
    """Of `minisd.models.vae.AutoencoderKL(config)`: ldm names without `first_stage_model.`."""
    return _shapes(vae_rules(config))


def text_shapes(config: TextConfig) -> Shapes:
    """Of `minisd.models.clip.TextEncoder(config)`: `text_model...`, `text_projection.weight` if
    projection_dim."""
    return _shapes(hf_rules(config))


def taesd_shapes(config: TAESDConfig) -> Shapes:
    """Of `minisd.models.taesd.TAESD(config)`: `encoder.N...` and `decoder.N...` with the original indices."""
    return _shapes(taesd_rules(config))
