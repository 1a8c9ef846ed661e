"""Networks that stand beside a UNet and add to what it computes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from minisd.config.model import UNetConfig


@dataclass(frozen=True)
class ControlNetConfig:
    """cldm.ControlNet (Zhang et al. 2023, arXiv:2302.05543): the encoder half of a UNet, told of a picture by
    a small network. `unet.depth_out` and `unet.out_channels` say nothing here.

    hint_widths: channels of the small network from the pixels down, halved in size between two of them.
    control_types: kinds of hint that a ControlNet-Union knows; None for the plain one.
    """

    unet: UNetConfig
    hint_channels: int = 3
    hint_widths: tuple[int, ...] = (16, 32, 96, 256)
    control_types: int | None = None
    union_layers: int = 1


@dataclass(frozen=True)
class LLLiteConfig:
    """ControlNet-LLLite (kohya-ss/sd-scripts): a small network before each of some projections of a UNet.

    places: (the file's name, our module, its inputs, strides of the convolutions that read the picture).
    hint_dim: channels of what is read; inner: of the small network.
    """

    places: tuple[tuple[str, str, int, tuple[int, ...]], ...]
    hint_dim: int = 32
    inner: int = 64
    hint_channels: int = 3

    @property
    def square(self) -> int:
        """Pixels of a side that become one token, at the coarsest place."""
        return max(math.prod(strides) for *_, strides in self.places)


@dataclass(frozen=True)
class T2IAdapterConfig:
    """T2I-Adapter (Mou et al. 2023, arXiv:2302.08453): features of a picture at every level of the UNet.

    unshuffle: pixels of a square that become channels: 8 for SD1, 16 for SDXL. widths: of the features;
    blocks: residual blocks per level. light: the variant with a narrow inside.
    """

    hint_channels: int = 3
    unshuffle: int = 8
    widths: tuple[int, ...] = (320, 640, 1280, 1280)
    blocks: int = 2
    light: bool = False

    @property
    def halved(self) -> tuple[bool, ...]:
        """Whether a level halves its input. SDXL's levels are those of the UNet after its first halving."""
        return tuple(n == 2 if self.unshuffle == 16 else n > 0 for n in range(len(self.widths)))


@dataclass(frozen=True)
class VisionConfig:
    """The image tower of CLIP (Radford et al. 2021, arXiv:2103.00020); the defaults are those of OpenCLIP's
    ViT-H/14."""

    image_size: int = 224
    patch: int = 14
    width: int = 1280
    layers: int = 32
    num_heads: int = 16
    mlp_dim: int = 5120
    activation: Literal["quick_gelu", "gelu"] = "gelu"
    projection_dim: int = 1024


@dataclass(frozen=True)
class IPAdapterConfig:
    """IP-Adapter (Ye et al. 2023, arXiv:2308.06721): tokens of a picture, and keys and values for them.

    kind: what makes tokens: "linear" from the picture's projected vector, "resampler" (plus) and "mlp" (full
    face) from the tower's tokens before its last layer. clip_dim: of these. tokens: their number ("mlp": as
    many as the tower's). attentions: channels of each attention to the text, in the order of diffusers: down,
    up, middle. depth, width, mlp_dim: of the resampler.
    """

    kind: Literal["linear", "resampler", "mlp"]
    clip_dim: int
    context_dim: int
    attentions: tuple[int, ...]
    tokens: int = 4
    depth: int = 0
    width: int = 0
    mlp_dim: int = 0
    head_dim: int = 64
