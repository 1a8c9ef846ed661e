"""ModelSpec 1.0.0 (Stability-AI/ModelSpec): what a file says of itself to other programs, in its metadata.

Only what follows from the model itself; no date, so that the same model gives the same bytes.
"""

from __future__ import annotations

from minisd.config import ModelConfig

ARCHITECTURES = {
    "sd1": "stable-diffusion-v1",
    "sd2": "stable-diffusion-v2-512",
    "sdxl": "stable-diffusion-xl-v1-base",
    "sdxl-refiner": "stable-diffusion-xl-v1-refiner",
}
SD2_V = "stable-diffusion-v2-768-v"
TASKS = {"none": "", "inpaint": "/inpainting", "ip2p": "/instruct-pix2pix", "depth": "/depth"}
PREDICTIONS = {"eps": "epsilon", "v": "v"}


def model_spec(config: ModelConfig, title: str, *, kind: str = "", **more: str) -> dict[str, str]:
    """The entries for a model of this config, or for what belongs to one (kind "lora"). more: further
    fields without their prefix, as `merged_from="a, b"`."""
    architecture = ARCHITECTURES[config.family]
    if config.family == "sd2" and config.prediction == "v":
        architecture = SD2_V
    entries = {
        "sai_model_spec": "1.0.0",
        "architecture": architecture + (f"/{kind}" if kind else TASKS[config.concat]),
        "implementation": "sgm",
        "title": title,
        "resolution": f"{config.size}x{config.size}",
        **({"prediction_type": PREDICTIONS[config.prediction]} if config.prediction in PREDICTIONS else {}),
        **more,
    }
    return {f"modelspec.{key}": value for key, value in entries.items()}
