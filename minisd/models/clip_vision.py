"""The image tower of CLIP: ViT-L/14 of OpenAI, ViT-H/14 and ViT-bigG/14 of OpenCLIP.

Paper: Radford et al. 2021 (arXiv:2103.00020). Parameter names are those of Hugging Face's
CLIPVisionModelWithProjection, misspelling included. The layers are the text transformer's (`clip.py`).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from minisd.config import VisionConfig
from minisd.models.clip import Encoder, empty_embedding

MEAN = (0.48145466, 0.4578275, 0.40821073)  # of the pictures CLIP was trained with, values 0..1
STD = (0.26862954, 0.26130258, 0.27577711)


class Seen(NamedTuple):
    """embeds: projected vector b p. tokens: hidden states before the last layer, b n width."""

    embeds: Tensor
    tokens: Tensor


class VisionEmbeddings(nn.Module):
    """Squares of pixels as tokens, the class token before them."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        places = (config.image_size // config.patch) ** 2 + 1
        self.class_embedding = nn.Parameter(torch.empty(config.width))
        self.patch_embedding = nn.Conv2d(3, config.width, config.patch, stride=config.patch, bias=False)
        self.position_embedding = empty_embedding(places, config.width)

    def forward(self, pixels: Tensor) -> Tensor:
        patches = self.patch_embedding(pixels).flatten(2).transpose(1, 2)  # b c h w -> b (h w) c
        first = self.class_embedding.expand(len(pixels), 1, -1)
        return torch.cat([first, patches], dim=1) + self.position_embedding.weight


class VisionModel(nn.Module):
    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.embeddings = VisionEmbeddings(config)
        self.pre_layrnorm = nn.LayerNorm(config.width, eps=1e-5)  # as the files spell it
        self.encoder = Encoder(config)
        self.post_layernorm = nn.LayerNorm(config.width, eps=1e-5)


class ImageEncoder(nn.Module):
    """Pixels b 3 s s, made even by MEAN and STD -> `Seen`."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.config = config
        self.vision_model = VisionModel(config)
        self.visual_projection = nn.Linear(config.width, config.projection_dim, bias=False)

    def forward(self, pixels: Tensor) -> Seen:
        model = self.vision_model
        x = model.pre_layrnorm(model.embeddings(pixels))
        *layers, last = model.encoder.layers
        for layer in layers:
            x = layer(x)
        whole = model.post_layernorm(last(x)[:, 0])
        return Seen(self.visual_projection(whole), x)
