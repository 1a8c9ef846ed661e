"""Parameter names of the networks in every published naming, built from the block structure of a config.

Each function walks its config as the network's constructor does and gives one `Rule` per parameter: our name
and shape, their name and the operation between them. Reading, writing and the table of expected shapes all
come from these rules. Nothing looks into a name. Ours are the original (ldm, sgm) names for UNet and VAE, and
Hugging Face's for text encoders.

Sources: key lists of CompVis/stable-diffusion, Stability-AI/generative-models, diffusers 0.42
(UNet2DConditionModel, AutoencoderKL), transformers (CLIPTextModelWithProjection), open_clip.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from itertools import pairwise

from minisd.config import TextConfig, UNetConfig, VAEConfig
from minisd.weights_loader.rule import Op, Rule

Rules = tuple[Rule, ...]


def linear(ours: str, theirs: str, inputs: int, outputs: int, *, bias: bool = True) -> Iterator[Rule]:
    yield Rule(f"{ours}.weight", (outputs, inputs), f"{theirs}.weight")
    if bias:
        yield Rule(f"{ours}.bias", (outputs,), f"{theirs}.bias")


def conv(
    ours: str, theirs: str, inputs: int, outputs: int, *, k: int = 3, bias: bool = True, op: Op = "same"
) -> Iterator[Rule]:
    yield Rule(f"{ours}.weight", (outputs, inputs, k, k), f"{theirs}.weight", op)
    if bias:
        yield Rule(f"{ours}.bias", (outputs,), f"{theirs}.bias")


def norm(ours: str, theirs: str, channels: int) -> Iterator[Rule]:
    yield Rule(f"{ours}.weight", (channels,), f"{theirs}.weight")
    yield Rule(f"{ours}.bias", (channels,), f"{theirs}.bias")


def unet_rules(config: UNetConfig) -> Rules:
    """UNet: ours = ldm without `model.diffusion_model.`, theirs = diffusers' UNet2DConditionModel."""
    return tuple(_unet(config))


def encoder_half(config: UNetConfig) -> Generator[Rule, None, list[int]]:
    """The UNet up to its middle. Returns the channels of every input block's output."""
    c, emb = config.model_channels, config.model_channels * 4
    yield from linear("time_embed.0", "time_embedding.linear_1", c, emb)
    yield from linear("time_embed.2", "time_embedding.linear_2", emb, emb)
    if config.guidance_dim is not None:
        shape = (c, config.guidance_dim)
        yield Rule("guidance_proj.weight", shape, "time_embedding.cond_proj.weight")
    if config.y_dim is not None:
        yield from linear("label_emb.0.0", "add_embedding.linear_1", config.y_dim, emb)
        yield from linear("label_emb.0.2", "add_embedding.linear_2", emb, emb)
    yield from conv("input_blocks.0.0", "conv_in", config.in_channels, c)

    levels = list(zip(config.channel_mult, config.num_res_blocks, strict=True))
    skips, channels, n, depths = [c], c, 1, iter(config.depth_in)
    for level, (mult, num_res_blocks) in enumerate(levels):
        down = f"down_blocks.{level}"
        for j in range(num_res_blocks):
            yield from _res_block(f"input_blocks.{n}.0", f"{down}.resnets.{j}", channels, c * mult, emb)
            channels = c * mult
            if depth := next(depths):
                yield from _transformer(
                    f"input_blocks.{n}.1", f"{down}.attentions.{j}", channels, depth, config
                )
            skips.append(channels)
            n += 1
        if level < len(levels) - 1:
            yield from conv(f"input_blocks.{n}.0.op", f"{down}.downsamplers.0.conv", channels, channels)
            skips.append(channels)
            n += 1

    if config.mid_blocks:
        yield from _res_block("middle_block.0", "mid_block.resnets.0", channels, channels, emb)
    if config.depth_mid:
        yield from _transformer(
            "middle_block.1", "mid_block.attentions.0", channels, config.depth_mid, config
        )
    if config.mid_blocks == 2:
        yield from _res_block("middle_block.2", "mid_block.resnets.1", channels, channels, emb)
    return skips


def _unet(config: UNetConfig) -> Iterator[Rule]:
    skips = yield from encoder_half(config)
    c, emb, channels = config.model_channels, config.model_channels * 4, skips[-1]
    levels = list(zip(config.channel_mult, config.num_res_blocks, strict=True))
    n, depths = 0, iter(config.depth_out)
    for level, (mult, num_res_blocks) in reversed(list(enumerate(levels))):
        up = f"up_blocks.{len(levels) - 1 - level}"
        for j in range(num_res_blocks + 1):
            yield from _res_block(
                f"output_blocks.{n}.0", f"{up}.resnets.{j}", channels + skips.pop(), c * mult, emb
            )
            channels = c * mult
            if depth := next(depths):
                yield from _transformer(
                    f"output_blocks.{n}.1", f"{up}.attentions.{j}", channels, depth, config
                )
            if level > 0 and j == num_res_blocks:
                index = 2 if depth else 1  # the upsampler comes after the attention, where there is one
                yield from conv(
                    f"output_blocks.{n}.{index}.conv", f"{up}.upsamplers.0.conv", channels, channels
                )
            n += 1
    yield from norm("out.0", "conv_norm_out", channels)
    yield from conv("out.2", "conv_out", channels, config.out_channels)


def _res_block(ours: str, theirs: str, inputs: int, outputs: int, emb: int) -> Iterator[Rule]:
    yield from norm(f"{ours}.in_layers.0", f"{theirs}.norm1", inputs)
    yield from conv(f"{ours}.in_layers.2", f"{theirs}.conv1", inputs, outputs)
    yield from linear(f"{ours}.emb_layers.1", f"{theirs}.time_emb_proj", emb, outputs)
    yield from norm(f"{ours}.out_layers.0", f"{theirs}.norm2", outputs)
    yield from conv(f"{ours}.out_layers.3", f"{theirs}.conv2", outputs, outputs)
    if inputs != outputs:
        yield from conv(f"{ours}.skip_connection", f"{theirs}.conv_shortcut", inputs, outputs, k=1)


def _transformer(ours: str, theirs: str, c: int, depth: int, config: UNetConfig) -> Iterator[Rule]:
    yield from norm(f"{ours}.norm", f"{theirs}.norm", c)
    for proj in ("proj_in", "proj_out"):
        if config.linear_proj:
            yield from linear(f"{ours}.{proj}", f"{theirs}.{proj}", c, c)
        else:
            yield from conv(f"{ours}.{proj}", f"{theirs}.{proj}", c, c, k=1)
    for k in range(depth):
        a, b = f"{ours}.transformer_blocks.{k}", f"{theirs}.transformer_blocks.{k}"
        for attn, context in (("attn1", c), ("attn2", config.context_dim)):
            yield from linear(f"{a}.{attn}.to_q", f"{b}.{attn}.to_q", c, c, bias=False)
            yield from linear(f"{a}.{attn}.to_k", f"{b}.{attn}.to_k", context, c, bias=False)
            yield from linear(f"{a}.{attn}.to_v", f"{b}.{attn}.to_v", context, c, bias=False)
            yield from linear(f"{a}.{attn}.to_out.0", f"{b}.{attn}.to_out.0", c, c)
        yield from linear(f"{a}.ff.net.0.proj", f"{b}.ff.net.0.proj", c, 8 * c)  # [value; gate] of 4c each
        yield from linear(f"{a}.ff.net.2", f"{b}.ff.net.2", 4 * c, c)
        for index in (1, 2, 3):
            yield from norm(f"{a}.norm{index}", f"{b}.norm{index}", c)


VAE_ATTENTION = {"q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}
# diffusers before mid-2023
VAE_ATTENTION_2022 = {
    "q": "query",
    "k": "key",
    "v": "value",
    "proj_out": "proj_attn",
}


def vae_rules(config: VAEConfig, *, old_attention: bool = False) -> Rules:
    """VAE: ours = ldm without `first_stage_model.`, theirs = diffusers' AutoencoderKL (`old_attention`: of
    2022)."""
    return tuple(_vae(config, VAE_ATTENTION_2022 if old_attention else VAE_ATTENTION))


def _vae(config: VAEConfig, attention: dict[str, str]) -> Iterator[Rule]:
    widths = [config.ch * m for m in config.ch_mult]
    last, finest = len(widths) - 1, widths[0]
    yield from conv("encoder.conv_in", "encoder.conv_in", config.in_channels, config.ch)
    for i, (incoming, width) in enumerate(pairwise([config.ch, *widths])):
        down, theirs = f"encoder.down.{i}", f"encoder.down_blocks.{i}"
        for j in range(config.num_res_blocks):
            yield from _vae_block(
                f"{down}.block.{j}", f"{theirs}.resnets.{j}", width if j else incoming, width
            )
        if i < last:
            yield from conv(f"{down}.downsample.conv", f"{theirs}.downsamplers.0.conv", width, width)
    yield from _vae_middle("encoder", widths[-1], attention)
    yield from norm("encoder.norm_out", "encoder.conv_norm_out", widths[-1])
    yield from conv("encoder.conv_out", "encoder.conv_out", widths[-1], 2 * config.z_channels)
    yield from conv("quant_conv", "quant_conv", 2 * config.z_channels, 2 * config.embed_dim, k=1)

    yield from conv("post_quant_conv", "post_quant_conv", config.embed_dim, config.z_channels, k=1)
    yield from conv("decoder.conv_in", "decoder.conv_in", config.z_channels, widths[-1])
    yield from _vae_middle("decoder", widths[-1], attention)
    for i, width in enumerate(widths):
        incoming = widths[min(i + 1, last)]
        up, theirs = (
            f"decoder.up.{i}",
            f"decoder.up_blocks.{last - i}",
        )  # theirs: running order
        for j in range(config.num_res_blocks + 1):
            yield from _vae_block(f"{up}.block.{j}", f"{theirs}.resnets.{j}", width if j else incoming, width)
        if i > 0:
            yield from conv(f"{up}.upsample.conv", f"{theirs}.upsamplers.0.conv", width, width)
    yield from norm("decoder.norm_out", "decoder.conv_norm_out", finest)
    yield from conv("decoder.conv_out", "decoder.conv_out", finest, config.out_channels)


def _vae_block(ours: str, theirs: str, inputs: int, outputs: int) -> Iterator[Rule]:
    yield from norm(f"{ours}.norm1", f"{theirs}.norm1", inputs)
    yield from conv(f"{ours}.conv1", f"{theirs}.conv1", inputs, outputs)
    yield from norm(f"{ours}.norm2", f"{theirs}.norm2", outputs)
    yield from conv(f"{ours}.conv2", f"{theirs}.conv2", outputs, outputs)
    if inputs != outputs:
        yield from conv(f"{ours}.nin_shortcut", f"{theirs}.conv_shortcut", inputs, outputs, k=1)


def _vae_middle(half: str, width: int, attention: dict[str, str]) -> Iterator[Rule]:
    ours, theirs = f"{half}.mid", f"{half}.mid_block"
    yield from _vae_block(f"{ours}.block_1", f"{theirs}.resnets.0", width, width)
    yield from norm(f"{ours}.attn_1.norm", f"{theirs}.attentions.0.group_norm", width)
    for a, b in attention.items():
        yield from conv(f"{ours}.attn_1.{a}", f"{theirs}.attentions.0.{b}", width, width, k=1, op="squeeze")
    yield from _vae_block(f"{ours}.block_2", f"{theirs}.resnets.1", width, width)


def text_rules(config: TextConfig, *, projection: str = "text_projection") -> Rules:
    """Text encoder: ours = Hugging Face's CLIPTextModelWithProjection, theirs = open_clip's text tower.

    `projection` is where the file keeps it: open_clip's own `text_projection` [d, p] is the transpose of
    ours; some files hold `text_projection.weight` [p, d], which is ours already.
    """
    return tuple(_text(config, projection))


def _text(config: TextConfig, projection: str) -> Iterator[Rule]:
    d, root = config.width, "text_model"
    yield Rule(f"{root}.embeddings.token_embedding.weight", (config.vocab_size, d), "token_embedding.weight")
    # a bare parameter there, an embedding here
    yield Rule(f"{root}.embeddings.position_embedding.weight", (config.max_length, d), "positional_embedding")
    for n in range(config.layers):
        ours, theirs = f"{root}.encoder.layers.{n}", f"transformer.resblocks.{n}"
        for kind, shape in (("weight", (d, d)), ("bias", (d,))):
            for index, name in enumerate(("q_proj", "k_proj", "v_proj")):  # stacked in this order
                attn, stacked = f"{ours}.self_attn.{name}.{kind}", f"{theirs}.attn.in_proj_{kind}"
                yield Rule(attn, shape, stacked, "rows", index * d)
        yield from linear(f"{ours}.self_attn.out_proj", f"{theirs}.attn.out_proj", d, d)
        yield from norm(f"{ours}.layer_norm1", f"{theirs}.ln_1", d)
        yield from linear(f"{ours}.mlp.fc1", f"{theirs}.mlp.c_fc", d, config.mlp_dim)
        yield from linear(f"{ours}.mlp.fc2", f"{theirs}.mlp.c_proj", config.mlp_dim, d)
        yield from norm(f"{ours}.layer_norm2", f"{theirs}.ln_2", d)
    if config.final_layer_norm:
        yield from norm(f"{root}.final_layer_norm", "ln_final", d)
    if config.projection_dim is not None:
        op: Op = "transpose" if projection == "text_projection" else "same"
        yield Rule("text_projection.weight", (config.projection_dim, d), projection, op)


def hf_rules(config: TextConfig, *, root: str = "text_model.") -> Rules:
    """Text encoder under Hugging Face's names; `root` is "" in files of transformers 5 and of NovelAI's
    descendants."""
    ours_root = "text_model."
    return tuple(
        Rule(r.ours, r.shape, root + r.ours[len(ours_root) :] if r.ours.startswith(ours_root) else r.ours)
        for r in _text(config, "text_projection")
    )
