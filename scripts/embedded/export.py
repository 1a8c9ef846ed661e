"""Stage 3: one standard SD1 single file, small: half precision, and the token table in float8.

The token table is a quarter of the file, and its rows are directions that the first LayerNorm rescales
anyway: e4m3 keeps them to about 3 %. Everything else is stored in float16.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from minisd.config import SD1, ModelConfig
from minisd.models.clip import TextEncoder
from minisd.models.unet import UNet
from minisd.models.vae import AutoencoderKL
from minisd.weights_loader.config_json import KEY, config_to_json

from .diffusion import TEXT, UNET
from .vae import CONFIG as VAE
from .vocabulary import Vocabulary

LIMIT = 24_000_000  # bytes; the wheel stays small enough to be installed without a thought
TOKENS = "text_model.embeddings.token_embedding.weight"


def model_config(scale_factor: float) -> ModelConfig:
    text = replace(SD1.text[0], config=TEXT)
    vae = replace(VAE, scale_factor=scale_factor)
    return replace(SD1, unet=UNET, vae=vae, text=(text,), prediction="v", size=128)


def metadata(config: ModelConfig, training: dict[str, float]) -> dict[str, str]:
    return {
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": "stable-diffusion-v1",
        "modelspec.implementation": "sgm",
        "modelspec.title": "minisd emoji",
        "modelspec.description": "A tiny Stable Diffusion, trained by scripts/train_embedded.py",
        "modelspec.license": "Apache-2.0; trained on pictures of Noto Color Emoji (SIL OFL 1.1)",
        "modelspec.prediction_type": "v",
        "modelspec.resolution": f"{config.size}x{config.size}",
        KEY: config_to_json(config),
        "minisd.training": json.dumps(training, sort_keys=True),
    }


def state_dict(
    text: TextEncoder, unet: UNet, vae: AutoencoderKL, vocabulary: Vocabulary
) -> dict[str, Tensor]:
    """All tensors under their names in an SD1 file, in the types in which they are stored."""
    words = dict(text.state_dict())
    words[TOKENS] = vocabulary.full_table(words[TOKENS])
    tensors = {f"model.diffusion_model.{k}": v for k, v in unet.state_dict().items()}
    tensors |= {f"first_stage_model.{k}": v for k, v in vae.state_dict().items()}
    tensors |= {f"cond_stage_model.transformer.{k}": v for k, v in words.items()}
    dtypes = {k: torch.float8_e4m3fn if k.endswith(TOKENS) else torch.float16 for k in tensors}
    stored = {k: v.to(dtypes[k]).contiguous() for k, v in tensors.items()}
    broken = [k for k, v in stored.items() if not v.float().isfinite().all()]
    if broken:
        raise ValueError(
            f"not finite in their stored type: {', '.join(broken[:5])}; the training has diverged"
        )
    return stored


def export(path: Path, tensors: dict[str, Tensor], config: ModelConfig, training: dict[str, float]) -> int:
    """Write the file and return its size in bytes. Raises ValueError if it is larger than LIMIT."""
    size = sum(t.numel() * t.element_size() for t in tensors.values())
    if size > LIMIT:
        raise ValueError(f"the tensors have {size:,} bytes, the limit is {LIMIT:,}; make the UNet narrower")
    temporary = path.with_suffix(".new")
    save_file(tensors, temporary, metadata(config, training))
    temporary.replace(path)
    return path.stat().st_size
