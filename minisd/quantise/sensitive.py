"""Which weights are left as they are, each with its reason: the only such table."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

Shape = tuple[int, ...]
Layers = tuple[tuple[str, str], ...]  # (module, scheme)

_TABLE: tuple[tuple[str, str, str], ...] = (  # kind of part, regular expression of the module, reason
    ("unet", r"input_blocks\.0\.0", "reads the noise itself, in a handful of channels"),
    ("unet", r"out\.2", "writes the prediction itself"),
    ("unet", r"(time_embed|label_emb|guidance_proj)(\..+)?", "every block at every pixel is told by it"),
    ("unet", r".+\.emb_layers\.1", "shifts whole channels; 3 % of the weights"),
    ("vae", r"(encoder|decoder)\.conv_in|(post_)?quant_conv", "reads pixels or latents, in a few channels"),
    ("vae", r"(encoder|decoder)\.conv_out", "writes pixels or latents"),
    ("text", r"text_model\.embeddings\..+", "a table of words: learned words stand beside its rows"),
    ("text", r"text_projection", "makes the one vector that speaks for the whole prompt"),
)
VECTOR = "a norm's or a bias: 0.1 % of the weights"
SMALL = "smaller than what it would save is worth"


def why_left(part: str, name: str, shape: Shape) -> str | None:
    """Why this parameter of a part is not quantised, or None if it is."""
    if part == "taesd":
        return SMALL
    if not name.endswith(".weight") or len(shape) not in (2, 4):
        return VECTOR
    kind = "text" if part.startswith("text") else part
    module = name.removesuffix(".weight")
    return next((why for k, pattern, why in _TABLE if k == kind and re.fullmatch(pattern, module)), None)


def layers_of(part: str, shapes: Mapping[str, Shape], scheme: str) -> Layers:
    """The layers of a part that this scheme stores, from {parameter: shape}."""
    names = (name for name, shape in shapes.items() if why_left(part, name, shape) is None)
    return tuple((name.removesuffix(".weight"), scheme) for name in names)


def scheme_name(layers: Layers) -> str:
    """One word for the schemes of a part: "none", "int8", "int8+nf4"."""
    return "+".join(dict.fromkeys(scheme for _, scheme in layers)) or "none"


def reasons(part: str, shapes: Mapping[str, Shape]) -> dict[str, list[str]]:
    """{reason: parameters} of what a part leaves as it is."""
    out: dict[str, list[str]] = {}
    for name, shape in shapes.items():
        if (why := why_left(part, name, shape)) is not None:
            out.setdefault(why, []).append(name)
    return out


def names_of(layers: Iterable[tuple[str, str]]) -> dict[str, str]:
    """{weight: scheme} of layers."""
    return {f"{module}.weight": scheme for module, scheme in layers}
