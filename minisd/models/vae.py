"""AutoencoderKL: pictures to latents and back (kl-f8 of Stable Diffusion 1, 2 and XL; one architecture, three
sets of weights).

Paper: Rombach et al. 2022 (arXiv:2112.10752), section 3.1 and appendix G. Reference:
ldm/modules/diffusionmodules/model.py of CompVis/stable-diffusion; parameter names are theirs. GroupNorm eps
is 1e-6 everywhere. Latents here are the network's own `z`; what the UNet sees is `z * config.scale_factor`.
Left out: the losses and the discriminator of training.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from minisd.config import VAEConfig
from minisd.kernels import attention
from minisd.models.conv import NO_WRAP, Conv2d, PointwiseConv, Wrap, around, per_token
from minisd.models.fused import GroupNorm, Upsample


def norm_silu(channels: int, groups: int) -> GroupNorm:
    return GroupNorm(groups, channels, eps=1e-6, silu=True)


class ResnetBlock(nn.Module):
    def __init__(self, in_channels: int, out_channels: int, groups: int) -> None:
        super().__init__()
        self.norm1 = norm_silu(in_channels, groups)
        self.conv1 = Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm2 = norm_silu(out_channels, groups)
        self.conv2 = Conv2d(out_channels, out_channels, 3, padding=1)
        if in_channels != out_channels:
            self.nin_shortcut = PointwiseConv(in_channels, out_channels)

    def forward(self, x: Tensor, wrap: Wrap = NO_WRAP) -> Tensor:
        h = around(self.conv1, self.norm1(x), wrap)
        h = around(self.conv2, self.norm2(h), wrap)
        return h + (self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x)


class AttnBlock(nn.Module):
    """Single-head self-attention over all pixels; q, k, v and proj_out are stored as 1x1 convolutions."""

    operation = "wide_attention"
    implementation: str = "sdpa"

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.norm = GroupNorm(groups, channels, eps=1e-6, silu=False)
        self.q = nn.Conv2d(channels, channels, 1)
        self.k = nn.Conv2d(channels, channels, 1)
        self.v = nn.Conv2d(channels, channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        tokens = rearrange(self.norm(x), "b c h w -> b (h w) c").contiguous()
        q, k, v = (per_token(layer, tokens) for layer in (self.q, self.k, self.v))
        out = attention(q, k, v, num_heads=1, implementation=self.implementation)
        out = per_token(self.proj_out, out)
        return x + rearrange(out, "b (h w) c -> b c h w", h=x.shape[2])


class Mid(nn.Module):
    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.block_1 = ResnetBlock(channels, channels, groups)
        self.attn_1 = AttnBlock(channels, groups)
        self.block_2 = ResnetBlock(channels, channels, groups)

    def forward(self, x: Tensor, wrap: Wrap = NO_WRAP) -> Tensor:
        return self.block_2(self.attn_1(self.block_1(x, wrap)), wrap)


class Downsample(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor, wrap: Wrap = NO_WRAP) -> Tensor:
        """Padded right and below only, as in training."""
        for axis, goes_on in zip((-2, -1), wrap, strict=True):
            if goes_on:
                x = torch.cat([x, x.narrow(axis, 0, 1)], dim=axis)
        return self.conv(F.pad(x, (0, not wrap[1], 0, not wrap[0])))


class Level(nn.Module):
    """One resolution: `down.i` or `up.i` of the files."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        num_blocks: int,
        groups: int,
        *,
        down: bool = False,
        up: bool = False,
    ) -> None:
        super().__init__()
        widths = [in_channels] + [out_channels] * num_blocks
        self.block = nn.ModuleList(
            ResnetBlock(a, b, groups) for a, b in zip(widths, widths[1:], strict=False)
        )
        if down:
            self.downsample = Downsample(out_channels)
        if up:
            self.upsample = Upsample(out_channels)

    def forward(self, x: Tensor, wrap: Wrap = NO_WRAP) -> Tensor:
        for block in self.block:
            x = block(x, wrap)
        if hasattr(self, "downsample"):
            x = self.downsample(x, wrap)
        return self.upsample(x, wrap=wrap) if hasattr(self, "upsample") else x


class Encoder(nn.Module):
    """Pixels b 3 H W -> moments b 2z h w."""

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        widths = [config.ch * m for m in (1, *config.ch_mult)]
        self.conv_in = Conv2d(config.in_channels, config.ch, 3, padding=1)
        last = len(config.ch_mult) - 1
        self.down = nn.ModuleList(
            Level(a, b, config.num_res_blocks, config.norm_groups, down=i < last)
            for i, (a, b) in enumerate(zip(widths, widths[1:], strict=False))
        )
        self.mid = Mid(widths[-1], config.norm_groups)
        self.norm_out = norm_silu(widths[-1], config.norm_groups)
        self.conv_out = Conv2d(widths[-1], 2 * config.z_channels, 3, padding=1)

    def forward(self, x: Tensor, wrap: Wrap = NO_WRAP) -> Tensor:
        h = around(self.conv_in, x, wrap)
        for level in self.down:
            h = level(h, wrap)
        return around(self.conv_out, self.norm_out(self.mid(h, wrap)), wrap)


class Decoder(nn.Module):
    """Latents b z h w -> pixels b 3 H W. `up` is indexed by resolution, finest first, and run from the
    coarsest."""

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        widths = [config.ch * m for m in config.ch_mult]
        self.conv_in = Conv2d(config.z_channels, widths[-1], 3, padding=1)
        self.mid = Mid(widths[-1], config.norm_groups)
        incoming = [*widths[1:], widths[-1]]
        self.up = nn.ModuleList(
            Level(a, b, config.num_res_blocks + 1, config.norm_groups, up=i > 0)
            for i, (a, b) in enumerate(zip(incoming, widths, strict=True))
        )
        self.norm_out = norm_silu(widths[0], config.norm_groups)
        self.conv_out = Conv2d(widths[0], config.out_channels, 3, padding=1)

    def forward(self, z: Tensor, wrap: Wrap = NO_WRAP) -> Tensor:
        h = self.mid(around(self.conv_in, z, wrap), wrap)
        for level in reversed(self.up):
            h = level(h, wrap)
        return around(self.conv_out, self.norm_out(h), wrap)


@dataclass(frozen=True)
class Posterior:
    """The diagonal Gaussian q(z | x): mean and log variance, b z h w."""

    mean: Tensor
    logvar: Tensor

    def sample(self, noise: Tensor) -> Tensor:
        """mean + std * noise; the caller draws the noise, so that the seed stays the caller's."""
        return self.mean + (0.5 * self.logvar).exp() * noise


class AutoencoderKL(nn.Module):
    """encode: pixels [-1, 1] b 3 H W -> Posterior over z, b 4 H/8 W/8. decode: z -> pixels, about [-1, 1],
    not clamped. wrap: axes along which the picture goes on at its opposite edge."""

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.quant_conv = PointwiseConv(2 * config.z_channels, 2 * config.embed_dim)
        self.post_quant_conv = PointwiseConv(config.embed_dim, config.z_channels)

    def encode(self, x: Tensor, wrap: Wrap = NO_WRAP) -> Posterior:
        mean, logvar = self.quant_conv(self.encoder(x, wrap)).chunk(2, dim=1)
        return Posterior(mean, torch.clamp(logvar, -30.0, 20.0))

    def decode(self, z: Tensor, wrap: Wrap = NO_WRAP) -> Tensor:
        return self.decoder(self.post_quant_conv(z), wrap)
