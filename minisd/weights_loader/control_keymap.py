"""Parameter names of control networks in every published naming; ours are those of the original files.

Sources: lllyasviel/ControlNet (cldm), diffusers 0.42 (ControlNetModel, ControlNetUnionModel), TencentARC
T2I-Adapter.
"""

from __future__ import annotations

from collections.abc import Iterator

from minisd.config import ControlNetConfig, T2IAdapterConfig
from minisd.weights_loader.keymap import Rules, conv, encoder_half, linear, norm
from minisd.weights_loader.rule import Rule

TYPE_DIM = 256


def controlnet_rules(config: ControlNetConfig) -> Rules:
    """ControlNet: ours = cldm without `control_model.`, theirs = diffusers' ControlNetModel."""
    return tuple(_controlnet(config))


def _controlnet(config: ControlNetConfig) -> Iterator[Rule]:
    c = config.unet.model_channels
    widths = yield from encoder_half(config.unet)
    for n, width in enumerate(widths):
        yield from conv(f"zero_convs.{n}.0", f"controlnet_down_blocks.{n}", width, width, k=1)
    yield from conv("middle_block_out.0", "controlnet_mid_block", widths[-1], widths[-1], k=1)
    hint, theirs = "input_hint_block", "controlnet_cond_embedding"
    yield from conv(f"{hint}.0", f"{theirs}.conv_in", config.hint_channels, config.hint_widths[0])
    for n, (fine, coarse) in enumerate(zip(config.hint_widths, config.hint_widths[1:], strict=False)):
        yield from conv(f"{hint}.{4 * n + 2}", f"{theirs}.blocks.{2 * n}", fine, fine)
        yield from conv(f"{hint}.{4 * n + 4}", f"{theirs}.blocks.{2 * n + 1}", fine, coarse)
    last = 4 * len(config.hint_widths) - 2
    yield from conv(f"{hint}.{last}", f"{theirs}.conv_out", config.hint_widths[-1], c)
    if config.control_types is not None:
        yield from _union(config, config.control_types)


def _union(config: ControlNetConfig, types: int) -> Iterator[Rule]:
    """What a Union has beside; the same names in both layouts."""
    c = config.unet.model_channels
    yield Rule("task_embedding", (types, c), "task_embedding")
    for n in range(config.union_layers):
        block = f"transformer_layes.{n}"  # as the files spell it
        yield Rule(f"{block}.attn.in_proj_weight", (3 * c, c), f"{block}.attn.in_proj_weight")
        yield Rule(f"{block}.attn.in_proj_bias", (3 * c,), f"{block}.attn.in_proj_bias")
        yield from linear(f"{block}.attn.out_proj", f"{block}.attn.out_proj", c, c)
        for ln in ("ln_1", "ln_2"):
            yield from norm(f"{block}.{ln}", f"{block}.{ln}", c)
        yield from linear(f"{block}.mlp.c_fc", f"{block}.mlp.c_fc", c, 4 * c)
        yield from linear(f"{block}.mlp.c_proj", f"{block}.mlp.c_proj", 4 * c, c)
    yield from linear("spatial_ch_projs", "spatial_ch_projs", c, c)
    first, second = "control_add_embedding.linear_1", "control_add_embedding.linear_2"
    yield from linear(first, first, TYPE_DIM * types, 4 * c)
    yield from linear(second, second, 4 * c, 4 * c)


def t2i_adapter_rules(config: T2IAdapterConfig) -> Rules:
    """T2I-Adapter: ours = TencentARC's, which counts all blocks of the full variant in one row; theirs =
    diffusers' T2IAdapter."""
    return tuple(_t2i_adapter(config))


def _t2i_adapter(config: T2IAdapterConfig) -> Iterator[Rule]:
    inputs = config.hint_channels * config.unshuffle**2
    if not config.light:
        yield from conv("conv_in", "adapter.conv_in", inputs, config.widths[0])
        inputs = config.widths[0]
    for level, width in enumerate(config.widths):
        inner = width // 4 if config.light else width
        theirs = f"adapter.body.{level}"
        ours = f"body.{level if config.light else level * config.blocks}"
        if config.light or inputs != width:
            yield from conv(f"{ours}.in_conv", f"{theirs}.in_conv", inputs, inner, k=1)
        for n in range(config.blocks):
            block = f"{ours}.body.{n}" if config.light else f"body.{level * config.blocks + n}"
            yield from conv(f"{block}.block1", f"{theirs}.resnets.{n}.block1", inner, inner)
            k = 3 if config.light else 1
            yield from conv(f"{block}.block2", f"{theirs}.resnets.{n}.block2", inner, inner, k=k)
        if config.light:
            yield from conv(f"{ours}.out_conv", f"{theirs}.out_conv", inner, width, k=1)
        inputs = width
