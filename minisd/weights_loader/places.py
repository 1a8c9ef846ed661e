"""Where the networks lie in a file: which prefix, under which naming. Keys only.

A folder in diffusers layout is seen as one file whose names start with the sub-folder
(`unet/conv_in.weight`), so both are told by the same table.
"""

from __future__ import annotations

from dataclasses import dataclass

from minisd.weights_loader.source import Tensors


@dataclass(frozen=True)
class Place:
    """A network found in a file. `part` is ours, but text encoders are only named when the family is
    known."""

    kind: str  # "unet", "vae", "text", "taesd"
    prefix: str
    layout: str  # see MARKS


# Names that only this network under this naming has; all must be there.
MARKS: dict[str, dict[str, tuple[str, ...]]] = {
    "unet": {
        "original": ("input_blocks.0.0.weight", "time_embed.0.weight"),
        "diffusers": (
            "conv_in.weight",
            "down_blocks.0.resnets.0.norm1.weight",
            "time_embedding.linear_1.weight",
        ),
    },
    "vae": {
        "original": ("decoder.conv_in.weight", "decoder.mid.block_1.norm1.weight"),
        "diffusers": ("decoder.conv_in.weight", "decoder.mid_block.resnets.0.norm1.weight"),
    },
    "text": {
        "hf": ("text_model.embeddings.token_embedding.weight",),
        "hf-bare": ("embeddings.token_embedding.weight", "embeddings.position_embedding.weight"),
        "openclip": ("token_embedding.weight", "positional_embedding"),
    },
}
PREFIXES: dict[str, tuple[str, ...]] = {
    "unet": ("model.diffusion_model.", "unet/", ""),
    "vae": ("first_stage_model.", "vae.", "vae/", ""),
    "text": (
        "cond_stage_model.transformer.",
        "cond_stage_model.model.",
        "conditioner.embedders.0.transformer.",
        "conditioner.embedders.0.model.",
        "conditioner.embedders.1.model.",
        "text_encoder/",
        "text_encoder_2/",
        "",
    ),
}
TAESD_MARKS = {  # layout: a name of the encoder, one of the decoder
    "original": ("encoder.1.conv.0.weight", "decoder.3.conv.0.weight"),
    "diffusers": ("encoder.layers.1.conv.0.weight", "decoder.layers.2.conv.0.weight"),
    "encoder-only": ("1.conv.0.weight", None),
    "decoder-only": (None, "3.conv.0.weight"),
}
TAESD_PREFIXES = ("taesd.", "vae/", "taesd/", "")


def places(tensors: Tensors) -> list[Place]:
    """Every network found, UNet first, each kind at most once per prefix."""
    found = [
        Place(kind, prefix, layout)
        for kind, prefixes in PREFIXES.items()
        for prefix in prefixes
        for layout, marks in MARKS[kind].items()
        if all(prefix + mark in tensors for mark in marks)
    ]
    taesd = _taesd_place(tensors)
    return [*found, taesd] if taesd else found


def _taesd_place(tensors: Tensors) -> Place | None:
    for prefix in TAESD_PREFIXES:
        for layout, marks in TAESD_MARKS.items():
            present = [prefix + mark in tensors for mark in marks if mark is not None]
            if layout == "encoder-only" and prefix + "0.weight" not in tensors:
                continue  # a decoder's index 0 has no weight
            if any(present):
                return Place("taesd", prefix, layout)
    return None


def below(tensors: Tensors, prefix: str) -> dict[str, tuple[int, ...]]:
    """{name without prefix: shape}"""
    return {name[len(prefix) :]: t.shape for name, t in tensors.items() if name.startswith(prefix)}
