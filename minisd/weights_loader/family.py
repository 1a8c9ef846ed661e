"""The family of a UNet and the task it was trained for, from its config: widths and channels, no names."""

from __future__ import annotations

from collections.abc import Mapping

from minisd.config import UNetConfig
from minisd.errors import CheckpointError
from minisd.weights_loader.config_json import Concat, Declared
from minisd.weights_loader.kinds import FAMILY_NAMES
from minisd.weights_loader.places import Place
from minisd.weights_loader.source import Tensors


def text_key(tensors: Tensors, place: Place) -> str:
    """The first attention to text, in words: `input_blocks.4.1...attn2.to_k.weight is [640, 2048]`."""
    for name, info in tensors.items():
        if name.startswith(place.prefix) and name.endswith(".attn2.to_k.weight"):
            return f"{name.removeprefix(place.prefix)} is {list(info.shape)}"
    return "no attention to text"


def family_of(
    unet: UNetConfig, declared: Declared | None, found: Mapping[str, list[Place]], key: str
) -> tuple[str, str]:
    """(family, evidence)."""
    if declared:
        if (unet.y_dim is None) != (declared.size_conditioning == "none"):
            raise CheckpointError(
                f"minisd.config says size_conditioning {declared.size_conditioning}, but the UNet takes "
                f"{'no' if unet.y_dim is None else 'a'} vector; the metadata is not of this file"
            )
        return declared.family, f"minisd.config in the metadata: {FAMILY_NAMES[declared.family]}"
    prefixes = {p.prefix for p in found.get("text", [])}
    width = unet.context_dim
    if unet.y_dim is not None:
        only = (
            "conditioner.embedders.0.model." in prefixes and "conditioner.embedders.1.model." not in prefixes
        )
        family = "sdxl-refiner" if width == 1280 or (width != 2048 and only) else "sdxl"
        return family, f"{key}: text of width {width}, and a vector of {unet.y_dim}: {FAMILY_NAMES[family]}"
    openclip = any(p.layout == "openclip" for p in found.get("text", []))
    family = "sd2" if width == 1024 or (width != 768 and openclip) else "sd1"
    return family, f"{key}: text of width {width}, and no vector: {FAMILY_NAMES[family]}"


def variant_of(unet: UNetConfig, z: int, declared: Declared | None) -> tuple[Concat, str | None]:
    """What the channels beyond the latent's are; or the sentence why the file is refused."""
    if unet.out_channels != z:
        return (
            "none",
            f"the UNet gives {unet.out_channels} channels; the latent has {z}",
        )
    kinds: dict[int, Concat] = {0: "none", z + 1: "inpaint", z: "ip2p", 1: "depth"}
    variant = kinds.get(unet.in_channels - z)
    if declared and declared.concat != variant:
        raise CheckpointError(
            f"minisd.config says concat {declared.concat}, but the UNet takes {unet.in_channels} channels; "
            "the metadata is not of this file"
        )
    if variant is None:
        shown = ", ".join(f"{n + z} ({k})" for n, k in kinds.items())
        return (
            "none",
            f"the UNet takes {unet.in_channels} channels; known are {shown}",
        )
    return variant, None
