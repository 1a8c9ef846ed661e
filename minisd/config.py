"""Every number that a Stable Diffusion network is built from, as frozen data.

A network is a config and a state dict. The table `FAMILIES` at the end holds the published families; a
checkpoint of the same architecture with other widths gets its numbers from tensor shapes
(`weights_loader/derive.py`) and what shapes cannot tell (heads, activation, conditioning rule) from the
family row it is closest to.

Sources: CompVis/stable-diffusion v1-inference.yaml, Stability-AI/stablediffusion v2-inference*.yaml,
Stability-AI/generative-models sd_xl_base.yaml and sd_xl_refiner.yaml, openai/CLIP, mlfoundations/open_clip.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

Prediction = Literal["eps", "v", "x0", "edm_eps", "edm_v"]


@dataclass(frozen=True)
class UNetConfig:
    """openaimodel.UNetModel of ldm/sgm. Depths are numbers of transformer blocks, one per residual block.

    `depth_in` runs over the residual blocks of `input_blocks` from the finest level down, `depth_out` over
    `output_blocks` from the coarsest level up (one residual block more per level). 0 means no attention
    there.
    """

    in_channels: int = 4
    out_channels: int = 4
    model_channels: int = 320
    channel_mult: tuple[int, ...] = (1, 2, 4, 4)
    num_res_blocks: tuple[int, ...] = (2, 2, 2, 2)
    depth_in: tuple[int, ...] = (1, 1, 1, 1, 1, 1, 0, 0)
    depth_mid: int = 1
    mid_blocks: int = 2  # residual blocks in the middle; SSD-1B has 1, KOALA-700M none
    depth_out: tuple[int, ...] = (0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 1)
    context_dim: int = 768
    num_heads: int | None = 8  # SD1: 8 heads everywhere, head dim 40, 80, 160
    head_dim: int | None = None  # SD2, SDXL: head dim 64 everywhere
    linear_proj: bool = False  # proj_in and proj_out: linear (SD2, SDXL) or 1x1 convolution (SD1)
    y_dim: int | None = None  # width of the vector conditioning of SDXL (label_emb)
    norm_groups: int = 32  # of every GroupNorm; shapes cannot tell
    guidance_dim: int | None = None  # sinusoids by which a distilled model (LCM) is told its guidance scale

    def heads(self, channels: int) -> tuple[int, int]:
        """(num_heads, head_dim) of the attention at a level with this many channels."""
        if self.head_dim is not None:
            return channels // self.head_dim, self.head_dim
        assert self.num_heads is not None
        return self.num_heads, channels // self.num_heads

    @property
    def downsampling(self) -> int:
        """Latent height and width are padded by nothing: they must be multiples of this."""
        return 2 ** (len(self.channel_mult) - 1)


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


@dataclass(frozen=True)
class RRDBNetConfig:
    """ESRGAN's network (Wang et al. 2018, arXiv:1809.00219) and Real-ESRGAN's (arXiv:2107.10833).

    ups: doublings of the size. unshuffle: pixels of a square that become channels first (2x and 1x networks).
    """

    channels: int = 3
    width: int = 64
    blocks: int = 23
    growth: int = 32
    ups: int = 2
    unshuffle: int = 1

    @property
    def scale(self) -> int:
        return 2**self.ups // self.unshuffle

    @property
    def reach(self) -> int:
        """Pixels around one that what becomes of it depends on: 15 convolutions to a block, and the last ones
        at larger sizes."""
        return self.unshuffle * (15 * self.blocks + 4)


@dataclass(frozen=True)
class CompactConfig:
    """SRVGGNetCompact of Real-ESRGAN: a row of 3x3 convolutions. `convs` counts all of them."""

    channels: int = 3
    width: int = 64
    convs: int = 34
    scale: int = 4

    @property
    def reach(self) -> int:
        return self.convs + 1  # the picture itself, enlarged, is added


@dataclass(frozen=True)
class OtherUpscalerConfig:
    """A network of an architecture that is not written here; the package spandrel runs it.

    reach: not known; transformers see the whole picture. tiled: whether parts of a picture may be shown to it
    alone.
    """

    architecture: str
    channels: int
    scale: int
    tiled: bool = True
    reach: int = 1 << 30


UpscalerConfig = RRDBNetConfig | CompactConfig


@dataclass(frozen=True)
class VAEConfig:
    """AutoencoderKL of ldm (Rombach et al. 2022), kl-f8: one single-head attention in the middle of each
    half."""

    in_channels: int = 3
    out_channels: int = 3
    ch: int = 128
    ch_mult: tuple[int, ...] = (1, 2, 4, 4)
    num_res_blocks: int = 2
    z_channels: int = 4
    embed_dim: int = 4
    norm_groups: int = 32  # of every GroupNorm; shapes cannot tell
    scale_factor: float = 0.18215  # latent = scale_factor * z; 0.13025 for SDXL. Shapes cannot tell.
    # per channel, of z: latent = scale_factor * (z - mean) / std (Playground v2.5)
    latents_mean: tuple[float, ...] | None = None
    latents_std: tuple[float, ...] | None = None

    @property
    def factor(self) -> int:
        """Pixels per latent, in each direction."""
        return 2 ** (len(self.ch_mult) - 1)


@dataclass(frozen=True)
class TAESDConfig:
    """Tiny autoencoder (madebyollin/taesd): plain convolutions and ReLU."""

    in_channels: int = 3
    latent_channels: int = 4
    width: int = 64
    num_blocks: tuple[int, ...] = (1, 3, 3, 3)  # encoder, fine to coarse; the decoder runs 3, 3, 3, 1


@dataclass(frozen=True)
class TextConfig:
    """One causal text transformer: CLIP-L (openai), OpenCLIP ViT-H and ViT-bigG."""

    vocab_size: int = 49408
    max_length: int = 77
    width: int = 768
    layers: int = 12
    num_heads: int = 12
    mlp_dim: int = 3072
    activation: Literal["quick_gelu", "gelu"] = "quick_gelu"
    projection_dim: int | None = None  # OpenCLIP text_projection; SDXL pools through bigG's
    final_layer_norm: bool = True  # False: the file lacks it (SDXL merges, where it is never applied)


@dataclass(frozen=True)
class TextUse:
    """How a family uses one encoder: where it lies in the file, and what of it reaches the UNet."""

    config: TextConfig
    part: str  # our name of the part: "text_encoder" or "text_encoder_2"; also the diffusers folder
    prefix: str  # in an original single file
    layout: Literal["hf", "openclip"]
    skip: int  # hidden state this many layers before the last: 0 = last, 1 = penultimate
    final_norm: bool  # final_layer_norm applied to that hidden state
    pad_id: int  # CLIP-L pads with end-of-text 49407, OpenCLIP with 0
    pooled: bool = False  # gives the pooled, projected vector of SDXL


@dataclass(frozen=True)
class ModelConfig:
    """A whole model: what a checkpoint of this family consists of and how a picture is drawn with it."""

    family: str  # "sd1", "sd2", "sdxl", "sdxl-refiner"
    unet: UNetConfig
    vae: VAEConfig
    text: tuple[TextUse, ...]
    prediction: Prediction = "eps"
    zero_terminal_snr: bool = False
    size: int = 512  # pixels; the width and height it was trained at
    size_conditioning: Literal["none", "sdxl", "refiner"] = "none"
    concat: Literal["none", "inpaint", "ip2p", "depth"] = (
        "none"  # meaning of UNet input channels beyond the latent's
    )
    schedule: TrainingSchedule = field(default_factory=lambda: TrainingSchedule())


@dataclass(frozen=True)
class TrainingSchedule:
    """The noise table of training: betas linear in their square root ("scaled linear")."""

    num_train_timesteps: int = 1000
    beta_start: float = 0.00085
    beta_end: float = 0.012
    beta_schedule: Literal["scaled_linear", "linear"] = "scaled_linear"


CLIP_L = TextConfig()
OPENCLIP_H = TextConfig(
    width=1024, layers=24, num_heads=16, mlp_dim=4096, activation="gelu", projection_dim=1024
)
OPENCLIP_BIGG = TextConfig(
    width=1280, layers=32, num_heads=20, mlp_dim=5120, activation="gelu", projection_dim=1280
)

SD1 = ModelConfig(
    family="sd1",
    unet=UNetConfig(),
    vae=VAEConfig(),
    text=(
        TextUse(
            CLIP_L,
            "text_encoder",
            "cond_stage_model.transformer.",
            "hf",
            skip=0,
            final_norm=True,
            pad_id=49407,
        ),
    ),
)
SD2 = ModelConfig(
    family="sd2",
    unet=UNetConfig(context_dim=1024, num_heads=None, head_dim=64, linear_proj=True),
    vae=VAEConfig(),
    text=(
        TextUse(
            OPENCLIP_H,
            "text_encoder",
            "cond_stage_model.model.",
            "openclip",
            skip=1,
            final_norm=True,
            pad_id=0,
        ),
    ),
)
SDXL = ModelConfig(
    family="sdxl",
    unet=UNetConfig(
        channel_mult=(1, 2, 4),
        num_res_blocks=(2, 2, 2),
        depth_in=(0, 0, 2, 2, 10, 10),
        depth_mid=10,
        depth_out=(10, 10, 10, 2, 2, 2, 0, 0, 0),
        context_dim=2048,
        num_heads=None,
        head_dim=64,
        linear_proj=True,
        y_dim=2816,
    ),
    vae=VAEConfig(scale_factor=0.13025),
    text=(
        TextUse(
            CLIP_L,
            "text_encoder",
            "conditioner.embedders.0.transformer.",
            "hf",
            skip=1,
            final_norm=False,
            pad_id=49407,
        ),
        TextUse(
            OPENCLIP_BIGG,
            "text_encoder_2",
            "conditioner.embedders.1.model.",
            "openclip",
            skip=1,
            final_norm=False,
            pad_id=0,
            pooled=True,
        ),
    ),
    size=1024,
    size_conditioning="sdxl",
)
SDXL_REFINER = ModelConfig(
    family="sdxl-refiner",
    unet=UNetConfig(
        model_channels=384,
        channel_mult=(1, 2, 4, 4),
        depth_in=(0, 0, 4, 4, 4, 4, 0, 0),
        depth_mid=4,
        depth_out=(0, 0, 0, 4, 4, 4, 4, 4, 4, 0, 0, 0),
        context_dim=1280,
        num_heads=None,
        head_dim=64,
        linear_proj=True,
        y_dim=2560,
    ),
    vae=VAEConfig(scale_factor=0.13025),
    text=(
        TextUse(
            OPENCLIP_BIGG,
            "text_encoder_2",
            "conditioner.embedders.0.model.",
            "openclip",
            skip=1,
            final_norm=False,
            pad_id=0,
            pooled=True,
        ),
    ),
    size=1024,
    size_conditioning="refiner",
)

# of Playground v2.5 (Li et al. 2024, arXiv:2402.17245), as its vae/config.json has them
PLAYGROUND_SCALE = 0.5
PLAYGROUND_MEAN = (-1.6574, 1.886, -1.383, 2.5155)
PLAYGROUND_STD = (8.4927, 5.9022, 6.5498, 5.2299)

FAMILIES: dict[str, ModelConfig] = {c.family: c for c in (SD1, SD2, SDXL, SDXL_REFINER)}
