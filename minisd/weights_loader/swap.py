"""Taking one part of a model from another file: a better VAE, a missing text encoder, a TAESD for
previews."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from minisd.config import FAMILIES, ModelConfig, TextConfig, VAEConfig
from minisd.errors import CheckpointError, quoted
from minisd.weights_loader.config_json import KEY, config_from_json
from minisd.weights_loader.networks import text_part
from minisd.weights_loader.part import Part
from minisd.weights_loader.places import Place
from minisd.weights_loader.source import TensorSource

if TYPE_CHECKING:
    from minisd.weights_loader.checkpoint import Checkpoint

Taken = tuple[TensorSource, Part, ModelConfig]


def taken(part: str, config: ModelConfig, name: str, other: Checkpoint) -> Taken:
    """(container, part, config of the model with it) for the model `name` of this config. Raises
    CheckpointError."""
    if part == "vae":
        return _vae(config, other)
    if part == "taesd":
        return other.source_of("taesd"), other.part("taesd"), config
    known = [use.part for use in config.text]
    if part not in known:
        shown = ", ".join(["vae", "taesd", *known])
        raise CheckpointError(
            f"{quoted(part)} cannot be swapped into {quoted(name)}; known there are {shown}"
        )
    return _text(part, config, other)


def _vae(config: ModelConfig, other: Checkpoint) -> Taken:
    piece = other.part("vae")
    assert isinstance(piece.config, VAEConfig)
    if piece.config.z_channels != config.vae.z_channels:
        raise CheckpointError(
            f"the VAE of {quoted(other.name)} has {piece.config.z_channels} latent channels; "
            f"the UNet needs {config.vae.z_channels}"
        )
    # the scale belongs to the latents that the UNet was trained on
    vae = replace(
        piece.config,
        scale_factor=config.vae.scale_factor,
        latents_mean=config.vae.latents_mean,
        latents_std=config.vae.latents_std,
    )
    return other.source_of("vae"), replace(piece, config=vae), replace(config, vae=vae)


def _text(part: str, config: ModelConfig, other: Checkpoint) -> Taken:
    """A file with one text encoder gives that; else the one of the same name."""
    encoders = [name for name in other.parts if isinstance(other.part(name).config, TextConfig)]
    found = encoders[0] if len(encoders) == 1 else part
    source, piece = other.source_of(found), other.part(found)
    row = next(use for use in FAMILIES[config.family].text if use.part == part)
    declared = config_from_json(source.metadata[KEY]) if KEY in source.metadata else None
    place = Place("text", piece.prefix, piece.layout)
    piece, use = text_part(source.tensors, place, row, declared, source.metadata)
    return source, piece, replace(config, text=tuple(use if u.part == part else u for u in config.text))
