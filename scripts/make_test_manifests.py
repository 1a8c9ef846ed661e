"""Packs a folder of checkpoint manifests into the small files that the tests read.

    python scripts/make_test_manifests.py MANIFESTS tests/data/manifests

MANIFESTS holds `<name>.json` (original layout), `<name>.diffusers.json`, `mapping/<name>.map.json` and
`adapters/`: names, shapes, dtypes and configs of published files, no weights. One `<name>.json.gz` is written
per model, plus `adapters.json.gz` with the key lists of files that are not models. Output is the same bytes
for the same input.
"""

from __future__ import annotations

import argparse
import gzip
import json
from pathlib import Path

MODELS = "sd15 sd15-inpainting sd15-ip2p sd21-base sd21-v sd2-inpainting sd2-depth".split()
MODELS += "sdxl-base sdxl-refiner sdxl-inpainting".split()
ADAPTERS = (
    "controlnet.json.gz clip_vision_safety.json.gz upscalers.json.gz ip_adapter.json lycoris.json".split()
)
ADAPTERS += "lora_sd15.json.gz lora_sdxl.json.gz lora_diffusers_peft.json.gz t2i_taesd.json".split()


def load(path: Path) -> dict:
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rt", encoding="utf-8") as file:
        return json.load(file)


def compact(tensors: dict) -> dict:
    """{name: [dtype, *shape]}"""
    return {name: [t["dtype"], *t["shape"]] for name, t in tensors.items()}


def save(path: Path, data: dict) -> None:
    text = json.dumps(data, separators=(",", ":")).encode()
    path.write_bytes(gzip.compress(text, 9, mtime=0))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("manifests", type=Path)
    parser.add_argument("target", type=Path)
    args = parser.parse_args()
    args.target.mkdir(parents=True, exist_ok=True)
    for name in MODELS:
        original, diffusers = (
            load(args.manifests / f"{name}.json"),
            load(args.manifests / f"{name}.diffusers.json"),
        )
        components = {
            part: {
                "class": c["class"],
                "config": c["config"],
                "tensors": compact(c["tensors"]),
                "optional_tensors": compact(c.get("optional_tensors", {})),
                "legacy_names": c.get("legacy_names", {}).get("map", {}),
            }
            for part, c in diffusers["components"].items()
            if part in ("unet", "vae", "text_encoder", "text_encoder_2")
        }
        # the copies of the UNet under model_ema. are its names without dots: the tests rebuild them
        optional = {
            k: v for k, v in original["optional_tensors"].items() if not k.startswith("model_ema.diffusion")
        }
        data = {
            "prediction_type": original["prediction_type"],
            "may_be_absent": original["may_be_absent"],
            "tensors": compact(original["tensors"]),
            "optional_tensors": compact(optional),
            "components": components,
            "scheduler": diffusers["scheduler"],
            "model_index": diffusers["model_index"],
            "pairs": load(args.manifests / "mapping" / f"{name}.map.json")["pairs"],
        }
        save(args.target / f"{name}.json.gz", data)
    save(
        args.target / "vae-only.json.gz",
        {"tensors": compact(load(args.manifests / "vae-only.json")["tensors"])},
    )
    items: dict = {}
    for name in ADAPTERS:
        for label, item in load(args.manifests / "adapters" / name)["items"].items():
            items[label] = compact(item["tensors"])
    save(args.target / "adapters.json.gz", items)


if __name__ == "__main__":
    main()
