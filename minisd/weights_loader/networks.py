"""The networks of ours that lie in a file: config, key map and contents of each, as a `Part`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import cast

from minisd.config import TextUse, UNetConfig, VAEConfig
from minisd.errors import CheckpointError
from minisd.weights_loader import keymap
from minisd.weights_loader.config_json import Declared
from minisd.weights_loader.derive import TextLayout, derive_text, derive_vae
from minisd.weights_loader.diffusers_config import norm_groups, text_numbers, vae_scale_factor
from minisd.weights_loader.part import Part, make_part
from minisd.weights_loader.places import Place, below
from minisd.weights_loader.rule import same_names
from minisd.weights_loader.source import Tensors


def unet_part(tensors: Tensors, place: Place, unet: UNetConfig) -> Part:
    """The UNet at this place, whose config is known."""
    rules = keymap.unet_rules(unet)
    rules = same_names(rules) if place.layout == "original" else rules
    return make_part("unet", place.prefix, place.layout, unet, rules, tensors)


def vae_part(
    tensors: Tensors,
    place: Place,
    metadata: Mapping[str, str],
    declared: Declared | None,
    published: float,
    why: str,
) -> tuple[Part, VAEConfig, str]:
    """The AutoencoderKL at this place, its config, and where the scale of its latents is from: the file's own
    words, or what was published, and why that."""
    said = metadata.get("vae/config.json") or metadata.get("config.json")
    scale, source, groups = published, why, 32
    if declared:
        scale, source = declared.scale_factor, "minisd.config in the metadata"
        groups = declared.vae_norm_groups
    elif said:
        if (factor := vae_scale_factor(said)) is not None:
            scale, source = factor, "vae/config.json"
        groups = norm_groups(said, "vae/config.json")
    layout = "original" if place.layout == "original" else "diffusers"
    config = replace(derive_vae(below(tensors, place.prefix), layout, scale), norm_groups=groups)
    check_groups("VAE", [config.ch * m for m in config.ch_mult], groups)
    old = f"{place.prefix}decoder.mid_block.attentions.0.query.weight" in tensors
    rules = keymap.vae_rules(config, old_attention=old)
    rules = same_names(rules) if layout == "original" else rules
    part = make_part("vae", place.prefix, place.layout, config, rules, tensors)
    return part, config, f"VAE scale factor {scale}: {source}"


def check_groups(what: str, widths: list[int], norm_groups: int) -> None:
    """Raises CheckpointError unless the groups divide every width."""
    if any(w % norm_groups for w in widths):
        raise CheckpointError(
            f"the {what} is {widths} wide, which {norm_groups} groups of GroupNorm do not divide; "
            "a file of other widths than the published ones must say its groups in the metadata minisd.config"
        )


def text_part(
    tensors: Tensors,
    place: Place,
    use: TextUse,
    declared: Declared | None,
    metadata: Mapping[str, str],
) -> tuple[Part, TextUse]:
    """The text encoder at this place, used as the family's row `use` says, with its own sizes."""
    shapes = below(tensors, place.prefix)
    use = derive_text(shapes, cast(TextLayout, place.layout), use, declared)
    where = place.prefix + "config.json"
    if declared is None and where in metadata:
        heads, activation = text_numbers(metadata[where], where, use.config)
        use = replace(use, config=replace(use.config, num_heads=heads, activation=activation))
    if place.layout == "openclip":
        plain = "text_projection" in shapes or "text_projection.weight" not in shapes
        rules = keymap.text_rules(
            use.config, projection="text_projection" if plain else "text_projection.weight"
        )
    else:
        rules = keymap.hf_rules(use.config, root="text_model." if place.layout == "hf" else "")
    return make_part(use.part, place.prefix, place.layout, use.config, rules, tensors), use


def ema_names(unet: Part, tensors: Tensors) -> dict[str, str]:
    """{name of the plain weight: name of its EMA copy} when every parameter of the UNet has one, else {}.

    Trainers of CompVis store `model_ema.` + the name without any dot, from `diffusion_model.` or from the
    UNet itself. The way back cannot be computed, so the table is made from the names.
    """
    if unet.layout != "original":
        return {}
    for root in ("diffusion_model", ""):
        table = {
            unet.prefix + r.theirs: "model_ema." + (root + r.theirs.replace(".", "")) for r in unet.rules
        }
        if all(copy in tensors for copy in table.values()):
            return table
    return {}
