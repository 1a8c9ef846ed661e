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
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from minisd.config import UNetConfig
from minisd.models.conv import NO_WRAP, Conv2d, PointwiseConv, Wrap, around, each_alone, last_around
from minisd.models.edits import NO_EDIT, NO_RESIDUALS, Edit, FreeU, Residuals
from minisd.models.fused import GroupNorm, Upsample
from minisd.models.graph import Graphs
from minisd.models.once import Text, Times, tensor_of
from minisd.models.recall import Recall
from minisd.models.transformer import BasicTransformerBlock, SpatialTransformer

NO_EDITS: Mapping[str, Edit] = {}


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


@dataclass(frozen=True)
class Told:
    """What the blocks of one pass are told beside their input: as in `UNet.forward`."""

    emb: Tensor | Times
    context: Tensor | Text
    edits: Mapping[str, Edit]
    freeu: FreeU | None
    residuals: Residuals
    wrap: Wrap

    def run(self, block: nn.Module, name: str, h: Tensor, size: tuple[int, int] = (0, 0)) -> Tensor:
        edit = self.edits.get(name, NO_EDIT)
        return run_block(block, h, self.emb, self.context, size, edit, self.wrap)


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
        recall: Recall | None = None,
    ) -> Tensor:
        """edits: changes to single transformers, by the name of their block ("middle_block",
        "input_blocks.4"). residuals: what control networks add. wrap: axes along which the picture goes
        on at its opposite edge. recall: what may be reused of earlier passes. `Times`, with y in it, and
        `Text` stand for what was computed before (`once.py`)."""
        edits = edits or {}
        # what is recorded changes nothing
        plain = not edits and freeu is None and residuals is None and wrap == NO_WRAP and recall is None
        if self.graphs is not None and plain and not isinstance(timesteps, Times):
            return self.graphs.run(self.compute, x, timesteps, tensor_of(context), y)
        return self.compute(x, timesteps, context, y, edits, freeu, residuals, wrap, recall)

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
        recall: Recall | None = None,
    ) -> Tensor:
        """forward, without recordings."""
        emb = timesteps if isinstance(timesteps, Times) else self.embed(timesteps, y, x.dtype)
        told = Told(emb, context, edits, freeu, NO_RESIDUALS if residuals is None else residuals, wrap)
        assert len(told.residuals.to_skips) in (0, len(self.input_blocks)), "one for each input block"
        if recall is not None:
            h = recall.through(self, x, told)
        else:
            h, skips = self.down(x, told)
            h = self.up(self.middle(h, told), skips, told)
        return last_around(self.out, h, wrap)

    def down(
        self, h: Tensor, told: Told, first: int = 0, end: int | None = None
    ) -> tuple[Tensor, list[Tensor]]:
        """Through input blocks first .. end - 1: (output, what each hands to the decoder)."""
        skips: list[Tensor] = []
        for index in range(len(self.input_blocks))[first:end]:
            h = told.run(self.input_blocks[index], f"input_blocks.{index}", h)
            h = told.residuals.inside(index, h)
            skips.append(told.residuals.skip(index, h))
        return h, skips

    def middle(self, h: Tensor, told: Told) -> Tensor:
        return told.residuals.middle(told.run(self.middle_block, "middle_block", h))

    def up(
        self, h: Tensor, skips: list[Tensor], told: Told, first: int = 0, end: int | None = None
    ) -> Tensor:
        """Through output blocks first .. end - 1, which use up `skips` from its end, so that each is given
        back as soon as it can be."""
        for index in range(len(self.output_blocks))[first:end]:
            skip = skips.pop()
            if told.freeu is not None:
                h, skip = told.freeu.apply(h, skip, self.stages[index])
            h = torch.cat([h, skip], dim=1)
            height, width = skips[-1].shape[-2:] if skips else (0, 0)
            h = told.run(self.output_blocks[index], f"output_blocks.{index}", h, (height, width))
        return h
