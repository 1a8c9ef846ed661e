"""The published families, a row each.

Sources: CompVis/stable-diffusion v1-inference.yaml, Stability-AI/stablediffusion v2-inference*.yaml,
Stability-AI/generative-models sd_xl_base.yaml and sd_xl_refiner.yaml, openai/CLIP, mlfoundations/open_clip.
"""

from __future__ import annotations

from dataclasses import replace

from minisd.config.model import ModelConfig, TextConfig, TextUse, UNetConfig, VAEConfig

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
SDXL_BIGG = TextUse(
    OPENCLIP_BIGG,
    "text_encoder_2",
    "conditioner.embedders.1.model.",
    "openclip",
    skip=1,
    final_norm=False,
    pad_id=0,
    pooled=True,
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
        SDXL_BIGG,
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
    text=(replace(SDXL_BIGG, prefix="conditioner.embedders.0.model."),),
    size=1024,
    size_conditioning="refiner",
)

# of Playground v2.5 (Li et al. 2024, arXiv:2402.17245), as its vae/config.json has them
PLAYGROUND_SCALE = 0.5
PLAYGROUND_MEAN = (-1.6574, 1.886, -1.383, 2.5155)
PLAYGROUND_STD = (8.4927, 5.9022, 6.5498, 5.2299)

FAMILIES: dict[str, ModelConfig] = {c.family: c for c in (SD1, SD2, SDXL, SDXL_REFINER)}
