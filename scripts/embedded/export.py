"""Stage 3: one standard SD1 single file, small: half precision, and the token table in float8.

The token table is a quarter of the file, and its rows are directions that the first LayerNorm rescales
anyway: e4m3 keeps them to about 3 %. Everything else is stored in float16.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from minisd.config import SD1, ModelConfig
from minisd.models.clip import TextEncoder
from minisd.models.unet import UNet
from minisd.models.vae import AutoencoderKL
from minisd.weights_loader.config_json import KEY, config_from_json, config_to_json

from .diffusion import TEXT, UNET
from .vae import CONFIG as VAE
from .vocabulary import Vocabulary

LIMIT = 24_000_000  # bytes; the wheel stays small enough to be installed without a thought
TOKENS = "text_model.embeddings.token_embedding.weight"
PREFIXES = {
    "unet": "model.diffusion_model.",
    "vae": "first_stage_model.",
    "text": "cond_stage_model.transformer.",
}
TRAINING = "minisd.training"


def model_config(scale_factor: float, prediction: Literal["v", "eps"] = "v") -> ModelConfig:
    text = replace(SD1.text[0], config=TEXT)
    vae = replace(VAE, scale_factor=scale_factor)
    return replace(SD1, unet=UNET, vae=vae, text=(text,), prediction=prediction, size=128)


def metadata(config: ModelConfig, training: dict[str, float]) -> dict[str, str]:
    return {
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": "stable-diffusion-v1",
        "modelspec.implementation": "sgm",
        "modelspec.title": "minisd emoji",
        "modelspec.description": "A tiny Stable Diffusion, trained by scripts/train_embedded.py",
        "modelspec.license": "Apache-2.0; trained on pictures of Noto Color Emoji (SIL OFL 1.1)",
        "modelspec.prediction_type": "epsilon" if config.prediction == "eps" else "v",
        "modelspec.resolution": f"{config.size}x{config.size}",
        KEY: config_to_json(config),
        TRAINING: json.dumps(training, sort_keys=True),
    }


def state_dict(
    text: TextEncoder, unet: UNet, vae: AutoencoderKL, vocabulary: Vocabulary
) -> dict[str, Tensor]:
    """All tensors under their names in an SD1 file, in the types in which they are stored."""
    words = dict(text.state_dict())
    words[TOKENS] = vocabulary.full_table(words[TOKENS])
    parts = {"unet": unet.state_dict(), "vae": vae.state_dict(), "text": words}
    tensors = {PREFIXES[part] + k: v for part, named in parts.items() for k, v in named.items()}
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


@dataclass(frozen=True)
class Exported:
    """What an exported file holds, as training keeps it: float32, a token table of the vocabulary's size."""

    unet: dict[str, Tensor]
    vae: dict[str, Tensor]
    text: dict[str, Tensor]
    scale_factor: float
    prediction: str
    training: dict[str, float]  # minutes, steps, pictures


def read(path: Path, vocabulary: Vocabulary) -> Exported:
    """The inverse of `state_dict` and `export`, but for the rounding of the stored types. Raises ValueError
    for a file that this script did not write."""
    with safe_open(path, "pt") as file:
        about = file.metadata() or {}
    if KEY not in about or TRAINING not in about:
        raise ValueError(f"{path.name} does not say how it was trained; expected a file that `export` wrote")
    config = config_from_json(about[KEY])
    tensors = {k: v.float() for k, v in load_file(path).items()}
    parts = {
        part: {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
        for part, prefix in PREFIXES.items()
    }
    parts["text"][TOKENS] = vocabulary.small_table(parts["text"][TOKENS])
    told = json.loads(about[TRAINING])
    return Exported(**parts, scale_factor=config.scale_factor, prediction=config.prediction, training=told)
