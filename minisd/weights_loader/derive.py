"""Configs from {name: shape}: any width, any depth, exactly as the file has it.

What shapes cannot tell (heads, activation, scale factor) comes from the file's own words
(`config_json.Declared`) or from the published rule nearest to the shapes. Whether a file really fits the
derived config is not decided here: the strict load compares every name and shape afterwards.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from minisd.config import TextConfig, TextUse, UNetConfig, VAEConfig
from minisd.errors import CheckpointError, quoted
from minisd.weights_loader.config_json import Declared

Shapes = Mapping[str, tuple[int, ...]]
MAX_PARTS_OF_NAME = 16  # our deepest name has 10 dotted parts; more would only cost memory


class Outline:
    """Names and shapes of one network, with its numbered blocks countable."""

    def __init__(self, shapes: Shapes, what: str) -> None:
        self.shapes = shapes
        self.what = what
        self._prefixes: set[str] = set()
        for name in shapes:
            parts = name.split(".", MAX_PARTS_OF_NAME)
            self._prefixes.update(".".join(parts[:n]) for n in range(1, len(parts) + 1))

    def __contains__(self, prefix: str) -> bool:
        return prefix in self._prefixes

    def count(self, prefix: str) -> int:
        """How many of `prefix`.0, .1, .2 ... there are before the first gap."""
        n = 0
        while f"{prefix}.{n}" in self._prefixes:
            n += 1
        return n

    def size(self, name: str, axis: int) -> int:
        """Length of one axis. Raises CheckpointError if the tensor is not there, has no such axis, or is
        empty."""
        shape = self.shapes.get(name)
        if shape is None:
            raise CheckpointError(
                f"{self.what}: the tensor {quoted(name)} is missing; the file is incomplete"
            )
        if axis >= len(shape) or shape[axis] < 1:
            raise CheckpointError(f"{self.what}: {quoted(name)} is {list(shape)}; it cannot have this shape")
        return shape[axis]


@dataclass(frozen=True)
class Heads:
    """Of the UNet's attention: one of the two, and where it is from."""

    num_heads: int | None
    head_dim: int | None
    reason: str

    def __str__(self) -> str:
        return (
            f"{f'{self.num_heads} heads' if self.num_heads else f'heads {self.head_dim} wide'}: {self.reason}"
        )


def published_heads(context_dim: int, linear_proj: bool) -> Heads:
    """The rule of the released families."""
    if context_dim != 768 and linear_proj:
        return Heads(None, 64, "as in SD2 and SDXL")
    return Heads(8, None, "as in SD1")


def derive_unet(
    shapes: Shapes,
    layout: Literal["original", "diffusers"],
    heads: Heads | None = None,
    *,
    encoder_only: bool = False,
) -> UNetConfig:
    """UNetConfig of a UNet under ldm names (original) or diffusers' names, both without prefix.

    `heads` overrides the published rule. encoder_only: a ControlNet has no output blocks. Raises
    CheckpointError where the blocks do not make a UNet of this design.
    """
    outline = Outline(shapes, "UNet")
    levels, mid, out = _ldm_blocks(outline) if layout == "original" else _diffusers_blocks(outline)
    conv_in, conv_out = ("input_blocks.0.0", "out.2") if layout == "original" else ("conv_in", "conv_out")
    label = "label_emb.0.0.weight" if layout == "original" else "add_embedding.linear_1.weight"
    told = "guidance_proj.weight" if layout == "original" else "time_embedding.cond_proj.weight"
    c = outline.size(f"{conv_in}.weight", 0)
    mult = []
    for number, level in enumerate(levels):
        widths = {width for width, _ in level}
        if len(widths) != 1 or (width := widths.pop()) % c:
            raise CheckpointError(
                f"UNet: level {number} has the widths {[w for w, _ in level]}; "
                f"expected one multiple of {c} for all"
            )
        mult.append(width // c)
    expected_out = 0 if encoder_only else sum(len(level) + 1 for level in levels)
    if len(out) != expected_out:
        raise CheckpointError(
            f"UNet: {len(out)} output blocks for {expected_out - len(levels)} residual blocks on the way in, "
            f"{len(levels)} levels; expected {expected_out}: one more per level"
        )
    context_dim, linear = _attention(shapes)
    heads = heads or published_heads(context_dim, linear)
    return UNetConfig(
        in_channels=outline.size(f"{conv_in}.weight", 1),
        out_channels=0 if encoder_only else outline.size(f"{conv_out}.weight", 0),
        model_channels=c,
        channel_mult=tuple(mult),
        num_res_blocks=tuple(len(level) for level in levels),
        depth_in=tuple(depth for level in levels for _, depth in level),
        depth_mid=mid,
        mid_blocks=_mid_blocks(outline, layout, mid),
        depth_out=tuple(out),
        context_dim=context_dim,
        num_heads=heads.num_heads,
        head_dim=heads.head_dim,
        linear_proj=linear,
        y_dim=outline.size(label, 1) if label in shapes else None,
        guidance_dim=outline.size(told, 1) if told in shapes else None,
    )


def _mid_blocks(outline: Outline, layout: Literal["original", "diffusers"], depth: int) -> int:
    """Residual blocks in the middle. Where there is attention there are two, even if the file lacks them."""
    if depth:
        return 2
    names = ("middle_block.0", "middle_block.2")
    if layout == "diffusers":
        names = ("mid_block.resnets.0", "mid_block.resnets.1")
    return sum(n in outline for n in names)


Blocks = tuple[
    list[list[tuple[int, int]]], int, list[int]
]  # (width, depth) per level, depth of mid, depths of out


def _ldm_blocks(outline: Outline) -> Blocks:
    levels: list[list[tuple[int, int]]] = [[]]
    for n in range(1, outline.count("input_blocks")):
        block = f"input_blocks.{n}"
        if f"{block}.0.op" in outline:
            levels.append([])
        else:
            width = outline.size(f"{block}.0.out_layers.3.weight", 0)
            levels[-1].append((width, outline.count(f"{block}.1.transformer_blocks")))
    outs = range(outline.count("output_blocks"))
    out = [outline.count(f"output_blocks.{n}.1.transformer_blocks") for n in outs]
    return levels, outline.count("middle_block.1.transformer_blocks"), out


def _diffusers_blocks(outline: Outline) -> Blocks:
    levels = [
        [
            (
                outline.size(f"down_blocks.{i}.resnets.{j}.conv2.weight", 0),
                outline.count(f"down_blocks.{i}.attentions.{j}.transformer_blocks"),
            )
            for j in range(outline.count(f"down_blocks.{i}.resnets"))
        ]
        for i in range(outline.count("down_blocks"))
    ]
    out = [
        outline.count(f"up_blocks.{i}.attentions.{j}.transformer_blocks")
        for i in range(outline.count("up_blocks"))
        for j in range(outline.count(f"up_blocks.{i}.resnets"))
    ]
    return levels, outline.count("mid_block.attentions.0.transformer_blocks"), out


def _attention(shapes: Shapes) -> tuple[int, bool]:
    """(context_dim, linear_proj), which no level changes; SD1's where there is no attention at all."""
    contexts = [s for n, s in shapes.items() if n.endswith(".attn2.to_k.weight") and len(s) == 2]
    ranks = [len(s) for n, s in shapes.items() if n.endswith(".proj_in.weight")]
    return (contexts[0][1] if contexts else 768), bool(ranks) and min(ranks) == 2 == max(ranks)


def derive_vae(shapes: Shapes, layout: Literal["original", "diffusers"], scale_factor: float) -> VAEConfig:
    """VAEConfig of an AutoencoderKL under ldm names (original) or diffusers' names, both without prefix."""
    outline = Outline(shapes, "VAE")
    down, block = ("encoder.down", "block") if layout == "original" else ("encoder.down_blocks", "resnets")
    ch = outline.size("encoder.conv_in.weight", 0)
    widths = [outline.size(f"{down}.{i}.{block}.0.conv2.weight", 0) for i in range(outline.count(down))]
    if not widths or any(w % ch for w in widths):
        raise CheckpointError(f"VAE: the levels are {widths} wide; expected multiples of {ch}")
    return VAEConfig(
        in_channels=outline.size("encoder.conv_in.weight", 1),
        out_channels=outline.size("decoder.conv_out.weight", 0),
        ch=ch,
        ch_mult=tuple(w // ch for w in widths),
        num_res_blocks=outline.count(f"{down}.0.{block}"),
        z_channels=outline.size("decoder.conv_in.weight", 1),
        embed_dim=outline.size("post_quant_conv.weight", 1),
        scale_factor=scale_factor,
    )


TextLayout = Literal["hf", "hf-bare", "openclip"]


def derive_text(
    shapes: Shapes, layout: TextLayout, use: TextUse, declared: Declared | None = None
) -> TextUse:
    """The encoder as this family uses it, with the widths and layers that the file has.

    `use` is the family's row. Where the file lacks last layers that the family skips anyway, `skip` shrinks
    with them, so that the same hidden state is used. The projection counts only where the family pools with
    it.
    """
    outline = Outline(shapes, f"text encoder {use.part}")
    root = {"hf": "text_model.", "hf-bare": "", "openclip": ""}[layout]
    if layout == "openclip":
        tokens, positions, layers = "token_embedding.weight", "positional_embedding", "transformer.resblocks"
        fc, final = f"{layers}.0.mlp.c_fc.weight", "ln_final.weight"
    else:
        tokens = f"{root}embeddings.token_embedding.weight"
        positions, layers = f"{root}embeddings.position_embedding.weight", f"{root}encoder.layers"
        fc, final = f"{layers}.0.mlp.fc1.weight", f"{root}final_layer_norm.weight"
    width, present = outline.size(tokens, 1), outline.count(layers)
    said = declared.text.get(use.part) if declared else None
    pooled = said.pooled if said else use.pooled
    projection: int | None = None
    if pooled and "text_projection.weight" in shapes:
        projection = outline.size("text_projection.weight", 0)
    elif pooled:  # a missing projection is found by the strict load, which names it
        projection = outline.size("text_projection", 1) if "text_projection" in shapes else width
    published = use.config.num_heads if width == use.config.width else max(1, width // 64)
    needs_norm = pooled or (said.final_norm if said else use.final_norm)
    config = TextConfig(
        vocab_size=outline.size(tokens, 0),
        max_length=outline.size(positions, 0),
        width=width,
        layers=present,
        num_heads=said.num_heads if said else published,
        mlp_dim=outline.size(fc, 0),
        activation=said.activation if said else use.config.activation,
        projection_dim=projection,
        final_layer_norm=needs_norm or final in shapes,
    )
    if config.width % config.num_heads:
        raise CheckpointError(
            f"text encoder {use.part}: width {width} does not divide by {config.num_heads} heads; "
            "the file must say its heads in the metadata minisd.config"
        )
    if said:
        if said.skip > present:
            raise CheckpointError(
                f"text encoder {use.part}: skip {said.skip} of {present} layers; use at most {present}"
            )
        return replace(
            use, config=config, skip=said.skip, final_norm=said.final_norm, pad_id=said.pad_id, pooled=pooled
        )
    return replace(use, config=config, skip=max(0, use.skip - max(0, use.config.layers - present)))
