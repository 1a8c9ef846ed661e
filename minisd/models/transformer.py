"""The transformer of the UNet: over the pixels of a feature map, which attend to themselves and to the text.

Paper: Rombach et al. 2022 (arXiv:2112.10752). Reference: attention.SpatialTransformer of
CompVis/stable-diffusion; parameter names are its own. Left out on purpose: dropout.
"""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor, nn

from minisd.kernels import attention
from minisd.models.conv import per_token
from minisd.models.edits import NO_BLOCK_EDIT, NO_EDIT, BlockEdit, Edit, Shifts, rows_of
from minisd.models.fused import GEGLU, AddNorm, GroupNorm
from minisd.models.once import Projections, Text, tensor_of

FEW_TOKENS = 64  # per image; from here on a matrix product gives a row the same bits in any batch


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
        own = edit.attended(x, normed, lambda tokens: self.attn1(tokens, edit=edit))
        x, normed = self.norm2(x, own)
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
        height, width = x.shape[2:]
        # contiguous: a matrix product over strided tokens takes up to seven times as long (bf16, CPU)
        tokens = rearrange(self.norm(x), "b c h w -> b (h w) c").contiguous()
        tokens = per_token(self.proj_in, tokens)
        for index, block in enumerate(self.transformer_blocks):
            tokens = block(tokens, context, edit.of_block(index, (height, width)))
        tokens = per_token(self.proj_out, tokens)
        return x + rearrange(tokens, "b (h w) c -> b c h w", h=height)
