"""What a file without a UNet is: a VAE, text encoders, a TAESD, or nothing known."""

from __future__ import annotations

from collections.abc import Mapping

from minisd.config import FAMILIES, TextUse
from minisd.errors import listed
from minisd.weights_loader.config_json import Declared
from minisd.weights_loader.detection import Detection
from minisd.weights_loader.networks import text_part, vae_part
from minisd.weights_loader.part import Part
from minisd.weights_loader.places import Place
from minisd.weights_loader.source import Tensors
from minisd.weights_loader.taesd import taesd_part


def detect_parts(
    tensors: Tensors, metadata: Mapping[str, str], declared: Declared | None, found: Mapping[str, list[Place]]
) -> Detection:
    """A file without UNet: a VAE, text encoders, TAESD, or nothing known."""
    parts: dict[str, Part] = {}
    evidence: list[str] = []
    if "vae" in found:
        unknown = "shapes cannot tell it; SD1 and SD2 use this, SDXL 0.13025"
        parts["vae"], vae, said = vae_part(tensors, found["vae"][0], metadata, declared, 0.18215, unknown)
        evidence.append(said)
        if vae.z_channels != 4:
            what = f"a VAE with {vae.z_channels} latent channels (SD3, Flux)"
            refusal = f"this is {what}; SD1.x, SD2.x and SDXL have 4"
            return Detection("foreign", summary=what, evidence=tuple(evidence), refusal=refusal)
    for place in found.get("text", []):
        use = nearest_use(tensors, place, declared)
        part, use = text_part(tensors, place, use, declared, metadata)
        parts[use.part] = part
        evidence.append(f"{place.prefix}: a text encoder {use.config.width} wide")
    if "taesd" in found:
        parts["taesd"] = taesd_part(tensors, found["taesd"][0])
        evidence.append("numbered convolutions without norms: TAESD")
    if not parts:
        shown = f"its first tensors are {listed(list(tensors)[:3])}" if tensors else "it holds no tensor"
        what = "a file without a network that minisd knows"
        refusal = f"this is {what} ({shown}); it reads SD1.x, SD2.x and SDXL models and their parts"
        return Detection("foreign", summary=what, evidence=(shown,), refusal=refusal)
    kind = {"text_encoder_2": "text_encoder"}.get(first := next(iter(parts)), first)
    names = {"vae": "a VAE", "text_encoder": "a CLIP text encoder", "taesd": "a TAESD"}
    return Detection(
        kind=kind,
        summary=names[kind] if len(parts) == 1 else f"a set of parts ({', '.join(parts)})",
        parts=parts,
        present={name: part.contents for name, part in parts.items()},
        evidence=tuple(evidence),
    )


def nearest_use(tensors: Tensors, place: Place, declared: Declared | None) -> TextUse:
    """The row of the family whose encoder is as wide; by place and layout where none is."""
    rows = [use for config in FAMILIES.values() for use in config.text]
    if declared:
        rows = list(FAMILIES[declared.family].text)
    tokens = next(n for n in tensors if n.startswith(place.prefix) and n.endswith("token_embedding.weight"))
    width = tensors[tokens].shape[-1] if tensors[tokens].shape else 0
    second = place.prefix in ("text_encoder_2/", "conditioner.embedders.1.model.")
    layout = "openclip" if place.layout == "openclip" else "hf"

    def distance(use: TextUse) -> tuple[bool, bool, bool]:
        return (use.part == "text_encoder_2") != second, use.config.width != width, use.layout != layout

    if place.prefix == "":
        return min(rows, key=lambda use: distance(use)[1:])
    return min(rows, key=distance)
