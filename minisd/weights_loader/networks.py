"""The networks of ours that lie in a file: config, key map and contents of each, as a `Part`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import cast

from minisd.config import TextUse, UNetConfig, VAEConfig
from minisd.errors import CheckpointError
from minisd.weights_loader import keymap
from minisd.weights_loader.config_json import Declared
from minisd.weights_loader.derive import TextLayout, derive_taesd, derive_text, derive_vae
from minisd.weights_loader.diffusers_config import text_numbers
from minisd.weights_loader.part import Part, Tensors, make_part
from minisd.weights_loader.places import Place, below
from minisd.weights_loader.rule import same_names


def unet_part(tensors: Tensors, place: Place, unet: UNetConfig) -> Part:
    """The UNet at this place, whose config is known."""
    rules = keymap.unet_rules(unet)
    rules = same_names(rules) if place.layout == "original" else rules
    return make_part("unet", place.prefix, place.layout, unet, rules, tensors)


def vae_part(tensors: Tensors, place: Place, scale_factor: float, norm_groups: int) -> tuple[Part, VAEConfig]:
    """The AutoencoderKL at this place, and its config; the two numbers are what shapes cannot tell."""
    layout = "original" if place.layout == "original" else "diffusers"
    config = derive_vae(below(tensors, place.prefix), layout, scale_factor)
    config = replace(config, norm_groups=norm_groups)
    check_groups("VAE", [config.ch * m for m in config.ch_mult], norm_groups)
    old = f"{place.prefix}decoder.mid_block.attentions.0.query.weight" in tensors
    rules = keymap.vae_rules(config, old_attention=old)
    rules = same_names(rules) if layout == "original" else rules
    return make_part("vae", place.prefix, place.layout, config, rules, tensors), config


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


def taesd_part(tensors: Tensors, place: Place) -> Part:
    """The TAESD at this place: both halves, or the one that the file holds."""
    shapes = below(tensors, place.prefix)
    halves = [h for h in ("encoder", "decoder") if any(n.startswith(h + ".") for n in shapes)]
    if place.layout in ("encoder-only", "decoder-only"):
        halves = [place.layout.removesuffix("-only")]
        config = derive_taesd({f"{halves[0]}.{n}": s for n, s in shapes.items()})
    elif place.layout == "diffusers":
        config = derive_taesd(_taesd_ours(shapes))
    else:
        config = derive_taesd(shapes)
    rules = keymap.taesd_rules(config, encoder="encoder" in halves, decoder="decoder" in halves)
    if place.layout != "diffusers":
        rules = same_names(rules)
    if place.layout.endswith("-only"):
        rules = tuple(replace(r, theirs=r.ours.split(".", 1)[1]) for r in rules)
    return make_part("taesd", place.prefix, place.layout, config, rules, tensors)


def _taesd_ours(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """AutoencoderTiny's names -> ours: only the place of the number differs, and the decoder counts its clamp
    here."""
    ours = {}
    for name, shape in shapes.items():
        half, layers, number, *rest = [*name.split("."), "", ""]
        if layers == "layers" and number.isdecimal():
            index = int(number) + (half == "decoder")
            ours[".".join([half, str(index), *[r for r in rest if r]])] = shape
    return ours


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
