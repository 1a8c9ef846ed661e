"""ControlNet: a trainable copy of the UNet's encoder that reads a picture and adds to the skips.

Paper: Zhang, Rao, Agrawala 2023 (arXiv:2302.05543). Reference: cldm.ControlNet of lllyasviel/ControlNet;
parameter names are its own. ControlNet-Union (xinsir, ControlNetPlus) adds a type to each of several pictures
and mixes them; its names are those of its files, misspelling included.

    hint (pixels) ── input_hint_block ──┐
    x ── input_blocks.0 ────────────────+── input_blocks ── middle_block
                                        zero_convs        middle_block_out   -> residuals
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minisd.config import ControlNetConfig
from minisd.models.conv import NO_WRAP, Conv2d, PointwiseConv, Wrap, around, each_alone
from minisd.models.unet import UNetEncoder, run_block, timestep_embedding

TYPE_DIM = 256  # sinusoids per control type of a Union


class ControlNet(UNetEncoder):
    """Residuals for a UNet from x [b c h w], timesteps [b], context [b n d], y, and a hint [b 3 H W].

    The hint is a picture of the latent's proportions, values 0..1, 2^(len(hint_widths) - 1) times its size.
    """

    def __init__(self, config: ControlNetConfig) -> None:
        super().__init__(config.unet)
        self.control = config
        c = config.unet.model_channels
        widths = config.hint_widths
        layers: list[nn.Module] = [Conv2d(config.hint_channels, widths[0], 3, padding=1), nn.SiLU()]
        for fine, coarse in zip(widths, widths[1:], strict=False):
            layers += [Conv2d(fine, fine, 3, padding=1), nn.SiLU()]
            layers += [Conv2d(fine, coarse, 3, padding=1, stride=2), nn.SiLU()]
        self.input_hint_block = nn.Sequential(*layers, Conv2d(widths[-1], c, 3, padding=1))
        self.zero_convs = nn.ModuleList(nn.Sequential(PointwiseConv(w, w)) for w in self.widths)
        self.middle_block_out = nn.Sequential(PointwiseConv(self.widths[-1], self.widths[-1]))
        if config.control_types is not None:
            emb_dim = c * 4
            self.task_embedding = nn.Parameter(torch.empty(config.control_types, c))
            self.transformer_layes = nn.ModuleList(UnionBlock(c) for _ in range(config.union_layers))
            self.spatial_ch_projs = nn.Linear(c, c)
            self.control_add_embedding = TypeEmbedding(TYPE_DIM * config.control_types, emb_dim)

    def forward(
        self,
        x: Tensor,
        timesteps: Tensor,
        context: Tensor,
        hint: Tensor,
        y: Tensor | None = None,
        *,
        control_type: int | None = None,
    ) -> tuple[Tensor, ...]:
        """One residual for each input block's output, the last for the middle block's. control_type: of the
        hint, for a Union."""
        types = None if control_type is None else (control_type,)
        return self.residuals(x, timesteps, context, (self.hint_features(hint),), y, types)

    def hint_features(self, hint: Tensor, wrap: Wrap = NO_WRAP) -> Tensor:
        """b 3 H W -> b c h w; the same at every step of a run."""
        if wrap == NO_WRAP:
            return self.input_hint_block(hint)
        for layer in self.input_hint_block:
            plain = isinstance(layer, nn.SiLU)
            hint = layer(hint) if plain else around(layer, hint, wrap, getattr(layer, "stride", (1,))[0])
        return hint

    def residuals(
        self,
        x: Tensor,
        timesteps: Tensor,
        context: Tensor,
        features: Sequence[Tensor],
        y: Tensor | None = None,
        control_types: Sequence[int] | None = None,
        wrap: Wrap = NO_WRAP,
    ) -> tuple[Tensor, ...]:
        """As forward, from `hint_features`; a Union takes several, each with its type."""
        emb = self.embed(timesteps, y, x.dtype)
        h = run_block(self.input_blocks[0], x, emb, context, (0, 0), wrap=wrap)
        if self.control.control_types is None:
            assert len(features) == 1 and control_types is None, "a plain ControlNet reads one hint"
            h = h + features[0]
        else:
            assert control_types is not None, "a ControlNet-Union must be told the type of each hint"
            emb = emb + each_alone(self.control_add_embedding, self.told_types(control_types, x))
            h = h + self.mixed(h, features, control_types)
        outs = [self.zero_convs[0](h)]
        for block, zero_conv in zip(list(self.input_blocks)[1:], list(self.zero_convs)[1:], strict=True):
            h = run_block(block, h, emb, context, (0, 0), wrap=wrap)
            outs.append(zero_conv(h))
        h = run_block(self.middle_block, h, emb, context, (0, 0), wrap=wrap)
        return *outs, self.middle_block_out(h)

    def told_types(self, control_types: Sequence[int], like: Tensor) -> Tensor:
        """1 for the types that are given and 0 for the others, each as sinusoids: 1 (types 256)."""
        assert self.control.control_types is not None
        given = torch.zeros(self.control.control_types, device=like.device)
        given[list(control_types)] = 1.0
        return timestep_embedding(given, TYPE_DIM).flatten()[None].to(like.dtype)

    def mixed(self, h: Tensor, features: Sequence[Tensor], control_types: Sequence[int]) -> Tensor:
        """Union: the hints' features, each shifted by what its type and its mean over pixels say: b c h w."""
        total = torch.zeros_like(h)
        for feature, kind in zip(features, control_types, strict=True):
            token = feature.mean(dim=(2, 3)) + self.task_embedding[kind]
            for layer in self.transformer_layes:
                token = each_alone(layer, token)
            total = total + feature + each_alone(self.spatial_ch_projs, token)[:, :, None, None]
        return total


class UnionBlock(nn.Module):
    """Transformer block of a Union over one token [b c]. The published code attends over the batch, not over
    the tokens (batch_first is left out there): for a single image every token sees itself alone, and that is
    what is computed, so that an image does not depend on its company."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.attn = StackedProjections(width)
        self.ln_1 = nn.LayerNorm(width, eps=1e-5)
        self.mlp = QuickMLP(width)
        self.ln_2 = nn.LayerNorm(width, eps=1e-5)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class StackedProjections(nn.Module):
    """nn.MultiheadAttention's parameters; attention of a token to itself is its value."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.empty(3 * width))
        self.out_proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        value = slice(2 * x.shape[-1], None)
        return self.out_proj(F.linear(x, self.in_proj_weight[value], self.in_proj_bias[value]))


class QuickMLP(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.c_fc = nn.Linear(width, 4 * width)
        self.c_proj = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        h = self.c_fc(x)
        return self.c_proj(h * torch.sigmoid(1.702 * h))


class TypeEmbedding(nn.Module):
    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(inputs, width)
        self.linear_2 = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear_2(F.silu(self.linear_1(x)))
