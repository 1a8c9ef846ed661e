"""The UNet of Stable Diffusion 1, 2, XL and the XL refiner: predicts eps or v from a noisy latent, a timestep
and text.

Papers: Ho et al. 2020 (arXiv:2006.11239), Rombach et al. 2022 (arXiv:2112.10752), Podell et al. 2023
(arXiv:2307.01952). Reference: openaimodel.UNetModel of CompVis/stable-diffusion and
Stability-AI/generative-models; parameter names are theirs. Left out on purpose: dropout, class labels other
than SDXL's vector `y`, resblock up/down sampling, scale-shift norm, which no released checkpoint of these
families uses.

    x ── input_blocks ──┬─ middle_block ─── output_blocks ── out ── eps or v
                        └── skips, concatenated ──┘
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from einops import rearrange
from torch import Tensor, nn

from minisd.config import UNetConfig
from minisd.kernels import attention
from minisd.models.conv import (
    NO_WRAP,
    Conv2d,
    PointwiseConv,
    Wrap,
    around,
    each_alone,
    last_around,
    per_token,
)
from minisd.models.edits import (
    NO_BLOCK_EDIT,
    NO_EDIT,
    BlockEdit,
    Edit,
    FreeU,
    Residuals,
    Shifts,
    rows_of,
)
from minisd.models.fused import GEGLU, AddNorm, GroupNorm, Upsample
from minisd.models.graph import Graphs
from minisd.models.once import Projections, Text, Times, tensor_of

NO_EDITS: Mapping[str, Edit] = {}
FEW_TOKENS = 64  # per image; from here on a matrix product gives a row the same bits in any batch


def timestep_embedding(timesteps: Tensor, dim: int, max_period: float = 10000.0) -> Tensor:
    """Sinusoids of Vaswani et al. 2017, cosines first as in ldm: [b] -> float32 [b, dim]. Fractional
    timesteps are fine."""
    half = dim // 2
    exponent = -math.log(max_period) * torch.arange(half, dtype=torch.float32, device=timesteps.device) / half
    # float32 as in training, whatever the network computes in: bf16 cannot tell timestep 999 from 998
    angle = timesteps.float()[:, None] * exponent.exp()[None]
    return torch.cat([angle.cos(), angle.sin()], dim=-1)


def guidance_embedding(scale: float, dim: int) -> Tensor:
    """What a model distilled at all guidance scales (Meng et al. 2023, arXiv:2210.03142; LCM, Luo et al.
    2023, arXiv:2310.04378) is told of one: float32 [1, dim], dim even, sines first, of 1000 (scale - 1)."""
    half = dim // 2
    exponent = torch.arange(half, dtype=torch.float32) * -(math.log(10000.0) / (half - 1))
    angle = (scale - 1.0) * 1000.0 * exponent.exp()
    return torch.cat([angle.sin(), angle.cos()])[None]


class ResBlock(nn.Module):
    """x + conv(silu(norm(conv(silu(norm(x))) + emb)))."""

    def __init__(self, in_channels: int, emb_dim: int, out_channels: int, groups: int) -> None:
        super().__init__()
        self.in_layers = nn.Sequential(
            GroupNorm(groups, in_channels, eps=1e-5, silu=True),
            nn.Identity(),  # 1: SiLU, within 0
            Conv2d(in_channels, out_channels, 3, padding=1),
        )
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(emb_dim, out_channels))
        self.out_layers = nn.Sequential(
            GroupNorm(groups, out_channels, eps=1e-5, silu=True),
            nn.Identity(),  # 1: SiLU, within 0
            nn.Identity(),  # 2: dropout in training, keeps out_layers.3
            Conv2d(out_channels, out_channels, 3, padding=1),
        )
        same = in_channels == out_channels
        self.skip_connection = nn.Identity() if same else PointwiseConv(in_channels, out_channels)

    def forward(self, x: Tensor, emb: Tensor | Times, wrap: Wrap = NO_WRAP) -> Tensor:
        """x: b c h w; emb: b e or 1 e. Returns b c' h w."""
        h = last_around(self.in_layers, x, wrap)
        told = emb.of(self.emb_layers) if isinstance(emb, Times) else each_alone(self.emb_layers, emb)
        h = h + told[:, :, None, None]
        return self.skip_connection(x) + last_around(self.out_layers, h, wrap)


class CrossAttention(Projections):
    """Multi-head attention of tokens to themselves, or to the text when `context` is given."""

    implementation: str = "sdpa"

    def __init__(self, dim: int, context_dim: int, num_heads: int, *, of_itself: bool) -> None:
        super().__init__(dim, context_dim, of_itself=of_itself)
        self.operation = "self_attention" if of_itself else "cross_attention"
        self.num_heads = num_heads
        self.to_out = nn.Sequential(nn.Linear(dim, dim), nn.Identity())  # 1: dropout in training

    def forward(
        self, x: Tensor, context: Tensor | Text | None = None, edit: BlockEdit = NO_BLOCK_EDIT
    ) -> Tensor:
        """x: b n c; context: b m d. Returns b n c."""
        if context is None and edit.identity:  # every token attends to itself alone
            return self.to_out(self.to_v(x))
        q, k, v = self.shifted(x, context, edit.shifts) if edit.shifts else self.project(x, context)
        out = attention(q, k, v, self.num_heads, implementation=self.implementation)
        if context is None:
            if edit.observe is not None:
                edit.observe(q, k, self.num_heads)
            if edit.record is not None:
                edit.record(x)
            for other in edit.references:
                tokens = other.tokens.expand(len(x), -1, -1)
                keys, values = torch.cat([k, self.to_k(tokens)], 1), torch.cat([v, self.to_v(tokens)], 1)
                both = attention(q, keys, values, self.num_heads, implementation=self.implementation)
                out = torch.lerp(out, both, rows_of(other.weights, out))
        else:
            for seen in edit.pictures:
                k, v = seen.rows(len(q))
                told = attention(q, k, v, self.num_heads, implementation=self.implementation)
                out = out + seen.weight * told
        return self.to_out(out)

    def shifted(
        self, x: Tensor, context: Tensor | Text | None, shifts: Shifts
    ) -> tuple[Tensor, Tensor, Tensor]:
        """q, k, v of x, to which something is added before each projection; that of a text is left alone."""
        name = "attn1" if context is None else "attn2"

        def read(projection: str) -> Tensor:
            out = x
            for shift in shifts.get(f"{name}.{projection}", ()):
                out = shift.added(out)
            return out

        q = self.to_q(read("to_q"))
        if context is None:
            return q, self.to_k(read("to_k")), self.to_v(read("to_v"))
        return q, *(context.keys_and_values(self) if isinstance(context, Text) else self.of_text(context))


class FeedForward(nn.Module):
    def __init__(self, dim: int, mult: int = 4) -> None:
        super().__init__()
        self.net = nn.Sequential(
            GEGLU(dim, dim * mult),
            nn.Identity(),  # 1: dropout in training
            nn.Linear(dim * mult, dim),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class BasicTransformerBlock(nn.Module):
    """Self-attention, attention to the text, feed-forward; each behind a LayerNorm and added."""

    def __init__(self, dim: int, context_dim: int, num_heads: int) -> None:
        super().__init__()
        self.attn1 = CrossAttention(dim, dim, num_heads, of_itself=True)
        self.ff = FeedForward(dim)
        self.attn2 = CrossAttention(dim, context_dim, num_heads, of_itself=False)
        self.norm1 = AddNorm(dim)
        self.norm2 = AddNorm(dim)
        self.norm3 = AddNorm(dim)

    def forward(self, x: Tensor, context: Tensor | Text, edit: BlockEdit = NO_BLOCK_EDIT) -> Tensor:
        _, normed = self.norm1(x)
        x, normed = self.norm2(x, self.attn1(normed, edit=edit))
        x, normed = self.norm3(x, self.attn2(normed, context, edit))
        return x + self.ff(normed)


class SpatialTransformer(nn.Module):
    """Transformer over the pixels of a feature map. proj_in and proj_out act per pixel: 1x1 convolutions in
    SD1 files, linear layers in SD2 and SDXL files. Both are computed as linear layers over tokens; only the
    stored shape differs."""

    def __init__(
        self, channels: int, context_dim: int, num_heads: int, depth: int, linear: bool, groups: int
    ) -> None:
        super().__init__()
        self.norm = GroupNorm(groups, channels, eps=1e-6, silu=False)
        self.proj_in = nn.Linear(channels, channels) if linear else nn.Conv2d(channels, channels, 1)
        self.transformer_blocks = nn.ModuleList(
            BasicTransformerBlock(channels, context_dim, num_heads) for _ in range(depth)
        )
        self.proj_out = nn.Linear(channels, channels) if linear else nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor, context: Tensor | Text, edit: Edit = NO_EDIT) -> Tensor:
        """x: b c h w; context: b n d. Returns b c h w."""
        if edit.skip:
            return x
        few = x.shape[2] * x.shape[3] < FEW_TOKENS and edit.observe is None  # it hears of all images
        if few and x.shape[0] > 1 and x.device.type == "cpu":  # products with few rows: see each_alone
            images = zip(x.split(1), tensor_of(context).split(1), strict=True)
            return torch.cat([self(image, text, edit.row(i)) for i, (image, text) in enumerate(images)])
        height = x.shape[2]
        # contiguous: a matrix product over strided tokens takes up to seven times as long (bf16, CPU)
        tokens = rearrange(self.norm(x), "b c h w -> b (h w) c").contiguous()
        tokens = per_token(self.proj_in, tokens)
        for index, block in enumerate(self.transformer_blocks):
            tokens = block(tokens, context, edit.of_block(index))
        tokens = per_token(self.proj_out, tokens)
        return x + rearrange(tokens, "b (h w) c -> b c h w", h=height)


class Downsample(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.op = Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor, wrap: Wrap = NO_WRAP) -> Tensor:
        return around(self.op, x, wrap, stride=2)


def compile_regions(network: nn.Module, backend: str = "inductor") -> None:
    """torch.compile for each transformer block and residual block: a few kinds of them, so that compiling
    takes a tenth of the whole network's time. In place; shapes that come later compile anew."""
    for module in network.modules():
        if isinstance(module, BasicTransformerBlock | ResBlock):
            module.compile(backend=backend, dynamic=False)


def run_block(
    block: nn.Module,
    x: Tensor,
    emb: Tensor | Times,
    context: Tensor | Text,
    size: tuple[int, int],
    edit: Edit = NO_EDIT,
    wrap: Wrap = NO_WRAP,
) -> Tensor:
    """One entry of input_blocks, middle_block or output_blocks: each layer gets what it needs."""
    assert isinstance(block, nn.Sequential)
    for layer in block:
        if isinstance(layer, ResBlock):
            x = layer(x, emb, wrap)
        elif isinstance(layer, SpatialTransformer):
            x = layer(x, context, edit)
        elif isinstance(layer, Upsample):
            x = layer(x, size, wrap)
        elif isinstance(layer, Downsample):
            x = layer(x, wrap)
        elif isinstance(layer, nn.Identity):  # in place of a middle transformer
            x = layer(x)
        else:  # the first convolution
            x = around(layer, x, wrap)
    return x


class UNetEncoder(nn.Module):
    """The half of a UNet up to its middle, which a ControlNet has, too. Only built here; `UNet` and
    `ControlNet` run it."""

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        self.config = config
        c, emb_dim = config.model_channels, config.model_channels * 4
        self.time_embed = nn.Sequential(nn.Linear(c, emb_dim), nn.SiLU(), nn.Linear(emb_dim, emb_dim))
        if config.guidance_dim is not None:
            self.guidance_proj = nn.Linear(config.guidance_dim, c, bias=False)
        if config.y_dim is not None:
            vector = nn.Sequential(nn.Linear(config.y_dim, emb_dim), nn.SiLU(), nn.Linear(emb_dim, emb_dim))
            self.label_emb = nn.Sequential(vector)  # label_emb.0.0 in the files

        self.input_blocks = nn.ModuleList([nn.Sequential(Conv2d(config.in_channels, c, 3, padding=1))])
        channels, depths = c, iter(config.depth_in)
        self.widths = [c]  # channels of every input block's output
        levels = list(zip(config.channel_mult, config.num_res_blocks, strict=True))
        for level, (mult, num_res_blocks) in enumerate(levels):
            for _ in range(num_res_blocks):
                block: list[nn.Module] = [res_block(config, channels, c * mult)]
                channels = c * mult
                if depth := next(depths):
                    block.append(transformer(config, channels, depth))
                self.input_blocks.append(nn.Sequential(*block))
                self.widths.append(channels)
            if level < len(levels) - 1:
                self.input_blocks.append(nn.Sequential(Downsample(channels)))
                self.widths.append(channels)

        middle: list[nn.Module] = [res_block(config, channels, channels) for _ in range(config.mid_blocks)]
        if config.mid_blocks == 2:
            between = transformer(config, channels, config.depth_mid) if config.depth_mid else nn.Identity()
            middle.insert(1, between)
        self.middle_block = nn.Sequential(*middle)

    def embed(self, timesteps: Tensor, y: Tensor | None, dtype: torch.dtype) -> Tensor:
        """What every residual block is told of timesteps [b] and y [b, y_dim]: b e. y ends with what
        `guidance_embedding` gives, where the model is told its guidance scale; a ControlNet beside it is not.
        """
        sinusoids = timestep_embedding(timesteps, self.config.model_channels).to(dtype)
        vector = self.config.y_dim or 0
        if self.config.guidance_dim is not None:
            assert y is not None and y.shape[1] == vector + self.config.guidance_dim, "needs the scale in y"
            sinusoids = sinusoids + each_alone(self.guidance_proj, y[:, vector:])
        emb = each_alone(self.time_embed, sinusoids)
        if self.config.y_dim is not None:
            assert y is not None, "this UNet needs the vector y (SDXL)"
            emb = emb + each_alone(self.label_emb, y if y.shape[1] == vector else y[:, :vector])
        return emb


def res_block(config: UNetConfig, in_channels: int, out_channels: int) -> ResBlock:
    return ResBlock(in_channels, config.model_channels * 4, out_channels, config.norm_groups)


def transformer(config: UNetConfig, channels: int, depth: int) -> SpatialTransformer:
    num_heads, _ = config.heads(channels)
    return SpatialTransformer(
        channels, config.context_dim, num_heads, depth, config.linear_proj, config.norm_groups
    )


class UNet(UNetEncoder):
    """eps or v [b, out_channels, h, w] from x [b, in_channels, h, w], timesteps [b], context [b, n,
    context_dim], y [b, y_dim].

    `x` is already scaled (c_in x, variance about 1). One timestep [1] may serve a whole batch, and y then
    too.
    """

    def __init__(self, config: UNetConfig) -> None:
        super().__init__(config)
        c, skips = config.model_channels, list(self.widths)
        channels = skips[-1]
        self.output_blocks = nn.ModuleList()
        self.stages: list[int] = []  # of output_blocks: 0 at the coarsest level
        depths = iter(config.depth_out)
        levels = list(zip(config.channel_mult, config.num_res_blocks, strict=True))
        for level, (mult, num_res_blocks) in reversed(list(enumerate(levels))):
            for index in range(num_res_blocks + 1):
                block: list[nn.Module] = [res_block(config, channels + skips.pop(), c * mult)]
                channels = c * mult
                if depth := next(depths):
                    block.append(transformer(config, channels, depth))
                if level > 0 and index == num_res_blocks:
                    block.append(Upsample(channels))  # sub-index 1 where the level has no attention, else 2
                self.output_blocks.append(nn.Sequential(*block))
                self.stages.append(len(levels) - 1 - level)

        self.out = nn.Sequential(
            GroupNorm(config.norm_groups, channels, eps=1e-5, silu=True),
            nn.Identity(),  # 1: SiLU, within 0
            Conv2d(channels, config.out_channels, 3, padding=1),
        )

    graphs: Graphs | None = None  # recordings to replay, where kernels.graph asked for them

    def forward(
        self,
        x: Tensor,
        timesteps: Tensor | Times,
        context: Tensor | Text,
        y: Tensor | None = None,
        *,
        edits: Mapping[str, Edit] | None = None,
        freeu: FreeU | None = None,
        residuals: Residuals | None = None,
        wrap: Wrap = NO_WRAP,
    ) -> Tensor:
        """edits: changes to single transformers, by the name of their block ("middle_block",
        "input_blocks.4"). residuals: what control networks add. wrap: axes along which the picture goes
        on at its opposite edge. `Times`, with y in it, and `Text` stand for what was computed before
        (`once.py`)."""
        edits = edits or {}
        # what is recorded changes nothing
        plain = not edits and freeu is None and residuals is None and wrap == NO_WRAP
        if self.graphs is not None and plain and not isinstance(timesteps, Times):
            return self.graphs.run(self.compute, x, timesteps, tensor_of(context), y)
        return self.compute(x, timesteps, context, y, edits, freeu, residuals, wrap)

    def compute(
        self,
        x: Tensor,
        timesteps: Tensor | Times,
        context: Tensor | Text,
        y: Tensor | None = None,
        edits: Mapping[str, Edit] = NO_EDITS,
        freeu: FreeU | None = None,
        residuals: Residuals | None = None,
        wrap: Wrap = NO_WRAP,
    ) -> Tensor:
        """forward, without recordings."""
        emb = timesteps if isinstance(timesteps, Times) else self.embed(timesteps, y, x.dtype)
        skips: list[Tensor] = []
        h = x
        for index, block in enumerate(self.input_blocks):
            edit = edits.get(f"input_blocks.{index}", NO_EDIT)
            h = run_block(block, h, emb, context, (0, 0), edit, wrap)
            if residuals is not None:
                h = residuals.inside(index, h)
            skips.append(h)
        edit = edits.get("middle_block", NO_EDIT)
        h = run_block(self.middle_block, h, emb, context, (0, 0), edit, wrap)
        if residuals is not None:
            h, skips = residuals.middle(h), residuals.skips(skips)
        for index, block in enumerate(self.output_blocks):
            edit = edits.get(f"output_blocks.{index}", NO_EDIT)
            skip = skips.pop()
            if freeu is not None:
                h, skip = freeu.apply(h, skip, self.stages[index])
            h = torch.cat([h, skip], dim=1)
            height, width = skips[-1].shape[-2:] if skips else (0, 0)
            h = run_block(block, h, emb, context, (height, width), edit, wrap)
        return last_around(self.out, h, wrap)
