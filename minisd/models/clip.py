"""The text transformer of CLIP: OpenAI's ViT-L/14 (SD1, SDXL), OpenCLIP's ViT-H (SD2) and ViT-bigG (SDXL,
refiner).

Paper: Radford et al. 2021 (arXiv:2103.00020). Parameter names follow Hugging Face's CLIPTextModel, which SD1
files already use; OpenCLIP names are mapped when a file is read (`weights_loader/keymap.py`). Attention is
causal and, as in every Stable Diffusion, padding is not masked. The image tower (`clip_vision.py`) is made of
the same layers, with attention that is not causal. Left out: the contrastive head.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minisd.config import TextConfig, VisionConfig
from minisd.kernels import attention


def quick_gelu(x: Tensor) -> Tensor:
    return x * torch.sigmoid(1.702 * x)


class SelfAttention(nn.Module):
    implementation: str = "sdpa"

    def __init__(self, config: TextConfig | VisionConfig) -> None:
        super().__init__()
        self.causal = isinstance(config, TextConfig)
        self.operation = "causal_attention" if self.causal else "self_attention"
        self.num_heads = config.num_heads
        self.k_proj = nn.Linear(config.width, config.width)
        self.v_proj = nn.Linear(config.width, config.width)
        self.q_proj = nn.Linear(config.width, config.width)
        self.out_proj = nn.Linear(config.width, config.width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.q_proj(x), self.k_proj(x), self.v_proj(x)
        out = attention(q, k, v, self.num_heads, causal=self.causal, implementation=self.implementation)
        return self.out_proj(out)


class MLP(nn.Module):
    def __init__(self, config: TextConfig | VisionConfig) -> None:
        super().__init__()
        self.activation = quick_gelu if config.activation == "quick_gelu" else F.gelu
        self.fc1 = nn.Linear(config.width, config.mlp_dim)
        self.fc2 = nn.Linear(config.mlp_dim, config.width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.activation(self.fc1(x)))


class EncoderLayer(nn.Module):
    def __init__(self, config: TextConfig | VisionConfig) -> None:
        super().__init__()
        self.self_attn = SelfAttention(config)
        self.layer_norm1 = nn.LayerNorm(config.width, eps=1e-5)
        self.mlp = MLP(config)
        self.layer_norm2 = nn.LayerNorm(config.width, eps=1e-5)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.self_attn(self.layer_norm1(x))
        return x + self.mlp(self.layer_norm2(x))


def empty_embedding(rows: int, width: int) -> nn.Embedding:
    """A table whose values are still to come."""
    return nn.Embedding.from_pretrained(torch.empty(rows, width), freeze=False)


class Embeddings(nn.Module):
    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        # not nn.Embedding(n, d): on the meta device its random start would import all of torch._dynamo (2 s)
        self.token_embedding = empty_embedding(config.vocab_size, config.width)
        self.position_embedding = empty_embedding(config.max_length, config.width)

    def forward(self, ids: Tensor, learned: Sequence[tuple[int, Tensor]] = ()) -> Tensor:
        """ids b n -> b n width. learned: (place, vectors k width) that stand there instead of tokens'."""
        x = self.token_embedding(ids)
        for place, vectors in learned:
            rows = vectors.to(x).expand(len(x), -1, -1)
            x = torch.cat([x[:, :place], rows, x[:, place + rows.shape[1] :]], dim=1)
        return x + self.position_embedding.weight[: ids.shape[1]]


class Encoder(nn.Module):
    def __init__(self, config: TextConfig | VisionConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(EncoderLayer(config) for _ in range(config.layers))


class TextTransformer(nn.Module):
    """The `text_model` of the files."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.embeddings = Embeddings(config)
        self.encoder = Encoder(config)
        if config.final_layer_norm:
            self.final_layer_norm = nn.LayerNorm(config.width, eps=1e-5)


class TextOutput(NamedTuple):
    hidden: Tensor  # b n width
    pooled: Tensor | None  # b projection_dim, from the end-of-text token of the last layer


class TextEncoder(nn.Module):
    """Token ids [b, n] -> what the UNet attends to."""

    place: torch.device | None = None  # where ids belong while the weights are away

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.config = config
        self.text_model = TextTransformer(config)
        if config.projection_dim is not None:
            self.text_projection = nn.Linear(config.width, config.projection_dim, bias=False)

    def forward(
        self,
        ids: Tensor,
        *,
        skip: int = 0,
        final_norm: bool = True,
        pooled: bool = False,
        learned: Sequence[tuple[int, Tensor]] = (),
    ) -> TextOutput:
        """ids: int64 [b, n], n <= 77. learned: words of textual inversion, (place, vectors k width).

        skip: hidden state this many layers before the last (0 = output of the last layer). final_norm: apply
        the final LayerNorm to it. pooled: also return final_norm(last layer) at the first end-of-text token,
        times text_projection. Raises ValueError if skip is not in 0 .. layers.
        """
        layers = self.text_model.encoder.layers
        if not 0 <= skip <= len(layers):
            raise ValueError(f"skip {skip} is outside 0..{len(layers)}, the layers of this text encoder")
        x = self.text_model.embeddings(ids, learned)
        wanted = len(layers) - skip
        hidden = x
        for index, layer in enumerate(layers if pooled else layers[:wanted], start=1):
            x = layer(x)
            if index == wanted:
                hidden = x
        if final_norm:
            hidden = self.text_model.final_layer_norm(hidden)
        if not pooled:
            return TextOutput(hidden, None)
        end = ids.argmax(dim=-1)  # end-of-text 49407 is the largest id; argmax gives its first place
        last = self.text_model.final_layer_norm(x)[torch.arange(ids.shape[0], device=ids.device), end]
        return TextOutput(hidden, self.text_projection(last))
