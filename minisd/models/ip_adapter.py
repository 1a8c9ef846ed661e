"""IP-Adapter: a picture as further tokens that the UNet attends to, beside those of the text.

Paper: Ye et al. 2023 (arXiv:2308.06721). Reference: tencent-ailab/IP-Adapter, whose parameter names these
are. The keys and values of the picture's tokens do not depend on the latents: they are made once in a run.
Left out: FaceID, which needs a network that recognises faces.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from minisd.config import IPAdapterConfig
from minisd.kernels import attention
from minisd.models.clip_vision import Seen


class LinearTokens(nn.Module):
    """The plain adapter: the picture's vector b d -> b tokens context_dim."""

    def __init__(self, config: IPAdapterConfig) -> None:
        super().__init__()
        self.tokens = config.tokens
        self.proj = nn.Linear(config.clip_dim, config.tokens * config.context_dim)
        self.norm = nn.LayerNorm(config.context_dim, eps=1e-5)

    def forward(self, seen: Seen) -> Tensor:
        return self.norm(self.proj(seen.embeds).unflatten(-1, (self.tokens, -1)))


class MLPTokens(nn.Module):
    """Full face: every token of the tower by itself, b n d -> b n context_dim."""

    def __init__(self, config: IPAdapterConfig) -> None:
        super().__init__()
        self.proj = nn.Sequential(
            nn.Linear(config.clip_dim, config.clip_dim),
            nn.GELU(),
            nn.Linear(config.clip_dim, config.context_dim),
            nn.LayerNorm(config.context_dim, eps=1e-5),
        )

    def forward(self, seen: Seen) -> Tensor:
        return self.proj(seen.tokens)


class PerceiverAttention(nn.Module):
    """Latents [b m d] attend to the picture's tokens and to themselves."""

    implementation: str = "sdpa"

    def __init__(self, width: int, head_dim: int) -> None:
        super().__init__()
        self.num_heads = width // head_dim
        self.norm1 = nn.LayerNorm(width, eps=1e-5)
        self.norm2 = nn.LayerNorm(width, eps=1e-5)
        self.to_q = nn.Linear(width, width, bias=False)
        self.to_kv = nn.Linear(width, 2 * width, bias=False)
        self.to_out = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor, latents: Tensor) -> Tensor:
        x, latents = self.norm1(x), self.norm2(latents)
        k, v = self.to_kv(torch.cat([x, latents], dim=1)).chunk(2, dim=-1)
        q = self.to_q(latents)
        return self.to_out(attention(q, k, v, self.num_heads, implementation=self.implementation))


class ResamplerTokens(nn.Module):
    """Plus: learned latents read the tower's tokens, b n d -> b tokens context_dim."""

    def __init__(self, config: IPAdapterConfig) -> None:
        super().__init__()
        w = config.width
        self.latents = nn.Parameter(torch.empty(1, config.tokens, w))
        self.proj_in = nn.Linear(config.clip_dim, w)
        self.proj_out = nn.Linear(w, config.context_dim)
        self.norm_out = nn.LayerNorm(config.context_dim, eps=1e-5)
        self.layers = nn.ModuleList()
        for _ in range(config.depth):
            feed = nn.Sequential(
                nn.LayerNorm(w, eps=1e-5),
                nn.Linear(w, config.mlp_dim, bias=False),
                nn.GELU(),
                nn.Linear(config.mlp_dim, w, bias=False),
            )
            self.layers.append(nn.ModuleList([PerceiverAttention(w, config.head_dim), feed]))

    def forward(self, seen: Seen) -> Tensor:
        x, latents = self.proj_in(seen.tokens), self.latents.expand(len(seen.tokens), -1, -1)
        for layer in self.layers:
            assert isinstance(layer, nn.ModuleList)
            attend, feed = layer
            latents = attend(x, latents) + latents
            latents = feed(latents) + latents
        return self.norm_out(self.proj_out(latents))


TOKENS = {"linear": LinearTokens, "mlp": MLPTokens, "resampler": ResamplerTokens}


class KeysValues(nn.Module):
    def __init__(self, context_dim: int, width: int) -> None:
        super().__init__()
        self.to_k_ip = nn.Linear(context_dim, width, bias=False)
        self.to_v_ip = nn.Linear(context_dim, width, bias=False)


class IPAdapter(nn.Module):
    """(key, value) [b m c] for each attention to the text, in diffusers' order, from a picture as seen."""

    def __init__(self, config: IPAdapterConfig) -> None:
        super().__init__()
        self.config = config
        self.image_proj = TOKENS[config.kind](config)
        # odd numbers: the even ones are self-attentions
        self.ip_adapter = nn.ModuleDict(
            {str(2 * i + 1): KeysValues(config.context_dim, w) for i, w in enumerate(config.attentions)}
        )

    def forward(self, seen: Seen) -> tuple[tuple[Tensor, Tensor], ...]:
        tokens = self.image_proj(seen)
        made = []
        for layer in self.ip_adapter.values():
            assert isinstance(layer, KeysValues)
            made.append((layer.to_k_ip(tokens), layer.to_v_ip(tokens)))
        return tuple(made)
