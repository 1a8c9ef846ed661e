"""Configs of control networks from {name: shape}, as `derive.py` for the networks of a model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Literal

from minisd.config import ControlNetConfig, T2IAdapterConfig, UNetConfig
from minisd.errors import CheckpointError
from minisd.weights_loader.derive import Outline, Shapes, derive_unet

Layout = Literal["original", "diffusers"]
UNSHUFFLES = {64: (1, 8), 192: (3, 8), 256: (1, 16), 768: (3, 16)}  # input channels: hint channels, square
MAX_HALVINGS = 8


def derive_controlnet(
    shapes: Shapes, layout: Layout, unet: UNetConfig | None = None, *, lora: bool = False
) -> ControlNetConfig:
    """ControlNetConfig from names without prefix. unet: of the model it is meant for, from which come heads
    and norm groups; the published rule without it. lora: a Control-LoRA, whose matrices come in two."""
    shapes = whole_shapes(shapes) if lora else shapes
    control = derive_unet(shapes, layout, encoder_only=True)
    if unet is not None:
        control = replace(
            control, num_heads=unet.num_heads, head_dim=unet.head_dim, norm_groups=unet.norm_groups
        )
    outline = Outline(shapes, "ControlNet")
    first, hint = _hint(layout, 0), []
    while len(hint) < MAX_HALVINGS and _hint(layout, 2 * len(hint) + 1) + ".weight" in shapes:
        hint.append(outline.size(_hint(layout, 2 * len(hint)) + ".weight", 0))
    if layout == "diffusers":
        hint.append(outline.size("controlnet_cond_embedding.conv_out.weight", 1))
    types = outline.size("task_embedding", 0) if "task_embedding" in shapes else None
    return ControlNetConfig(
        unet=control,
        hint_channels=outline.size(f"{first}.weight", 1),
        hint_widths=tuple(hint),
        control_types=types,
        union_layers=outline.count("transformer_layes") if types else 1,
    )


def _hint(layout: Layout, n: int) -> str:
    """Name of the n-th convolution of the hint's network, from the pixels down."""
    if layout == "original":
        return f"input_hint_block.{2 * n}"
    theirs = "controlnet_cond_embedding"
    return f"{theirs}.blocks.{n - 1}" if n else f"{theirs}.conv_in"


def whole_shapes(shapes: Shapes) -> dict[str, tuple[int, ...]]:
    """Of a Control-LoRA: `X.up` [o, r] and `X.down` [r, i, ...] seen as `X.weight` [o, i, ...]."""
    whole: dict[str, tuple[int, ...]] = {}
    for name, shape in shapes.items():
        if name.endswith(".up") and len(shape) >= 2:
            down = shapes.get(name.removesuffix("up") + "down", ())
            whole[name.removesuffix("up") + "weight"] = (shape[0], *down[1:])
        elif not name.endswith(".down"):
            whole[name] = shape
    return whole


def derive_t2i_adapter(shapes: Shapes, layout: Layout, unet: UNetConfig | None = None) -> T2IAdapterConfig:
    """T2IAdapterConfig from names without prefix. unet: of the model, which must be as wide.

    Raises CheckpointError for what is no adapter for SD1 or SDXL."""
    root = "adapter.body" if layout == "diffusers" else "body"
    outline = Outline(shapes, "T2I-Adapter")
    light = f"{root}.0.out_conv.weight" in shapes
    first = f"{root}.0.in_conv.weight" if light else root.replace("body", "conv_in") + ".weight"
    inputs = outline.size(first, 1)
    if inputs not in UNSHUFFLES:
        raise CheckpointError(
            f"T2I-Adapter: {inputs} input channels; expected {', '.join(map(str, UNSHUFFLES))}: "
            "squares of 8 or 16 pixels in 1 or 3 channels"
        )
    channels, unshuffle = UNSHUFFLES[inputs]
    widths, blocks = _levels(outline, shapes, root, layout, light)
    if unet is not None:
        wanted = tuple(unet.model_channels * m for m in unet.channel_mult)
        if wanted != widths[: len(wanted)] or len(widths) != (4 if unshuffle == 16 else len(wanted)):
            raise CheckpointError(
                f"the T2I-Adapter's features are {list(widths)} wide, the model {list(wanted)}; "
                "take the adapter of its family"
            )
    return T2IAdapterConfig(channels, unshuffle, widths, blocks, light)


def _levels(
    outline: Outline, shapes: Mapping[str, tuple[int, ...]], root: str, layout: Layout, light: bool
) -> tuple[tuple[int, ...], int]:
    """(widths, residual blocks per level)"""
    if light or layout == "diffusers":
        inner = "body" if layout == "original" else "resnets"
        last = "out_conv" if light else f"{inner}.0.block2"
        levels = range(outline.count(root))
        widths = tuple(outline.size(f"{root}.{n}.{last}.weight", 0) for n in levels)
        return widths, outline.count(f"{root}.0.{inner}")
    # one row of blocks; TencentARC's have two to a level
    count = outline.count(root)
    widths = tuple(outline.size(f"{root}.{n}.block2.weight", 0) for n in range(0, count, 2))
    return widths, 2
