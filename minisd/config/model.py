"""What a model is made of: the numbers of its networks, and the schedule it was trained with."""

from __future__ import annotations

from dataclasses import dataclass
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
    def attention_levels(self) -> dict[str, int]:
        """{block with attention, the middle one left out: its level, 0 the finest}."""
        found: dict[str, int] = {}
        levels = list(enumerate(self.num_res_blocks))
        down = [level for level, blocks in levels for _ in range(blocks)]
        up = [level for level, blocks in reversed(levels) for _ in range(blocks + 1)]
        for block, (level, depth) in enumerate(zip(down, self.depth_in, strict=True), start=1):
            if depth:
                found[f"input_blocks.{block + level}"] = level  # a halving between two levels
        for block, (level, depth) in enumerate(zip(up, self.depth_out, strict=True)):
            if depth:
                found[f"output_blocks.{block}"] = level
        return found


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
class TrainingSchedule:
    """The noise table of training: betas linear in their square root ("scaled linear")."""

    num_train_timesteps: int = 1000
    beta_start: float = 0.00085
    beta_end: float = 0.012
    beta_schedule: Literal["scaled_linear", "linear"] = "scaled_linear"


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
    concat: Literal["none", "inpaint", "ip2p", "depth"] = "none"  # meaning of the UNet's further channels
    schedule: TrainingSchedule = TrainingSchedule()
