"""Every number that a Stable Diffusion network is built from, as frozen data.

A network is a config and a state dict. The table `FAMILIES` holds the published families; a checkpoint of the
same architecture with other widths gets its numbers from tensor shapes (`weights_loader/derive.py`) and what
shapes cannot tell (heads, activation, conditioning rule) from the family row it is closest to.
"""

from minisd.config.beside import (
    ControlNetConfig,
    IPAdapterConfig,
    LLLiteConfig,
    T2IAdapterConfig,
    VisionConfig,
)
from minisd.config.families import (
    CLIP_L,
    FAMILIES,
    OPENCLIP_BIGG,
    OPENCLIP_H,
    PLAYGROUND_MEAN,
    PLAYGROUND_SCALE,
    PLAYGROUND_STD,
    SD1,
    SD2,
    SDXL,
    SDXL_REFINER,
)
from minisd.config.model import (
    ModelConfig,
    Prediction,
    TAESDConfig,
    TextConfig,
    TextUse,
    TrainingSchedule,
    UNetConfig,
    VAEConfig,
)
from minisd.config.upscalers import (
    CompactConfig,
    OtherUpscalerConfig,
    RRDBNetConfig,
    UpscalerConfig,
)

__all__ = [
    "CLIP_L",
    "CompactConfig",
    "ControlNetConfig",
    "FAMILIES",
    "IPAdapterConfig",
    "LLLiteConfig",
    "ModelConfig",
    "OPENCLIP_BIGG",
    "OPENCLIP_H",
    "OtherUpscalerConfig",
    "PLAYGROUND_MEAN",
    "PLAYGROUND_SCALE",
    "PLAYGROUND_STD",
    "Prediction",
    "RRDBNetConfig",
    "SD1",
    "SD2",
    "SDXL",
    "SDXL_REFINER",
    "T2IAdapterConfig",
    "TAESDConfig",
    "TextConfig",
    "TextUse",
    "TrainingSchedule",
    "UNetConfig",
    "UpscalerConfig",
    "VAEConfig",
    "VisionConfig",
]
