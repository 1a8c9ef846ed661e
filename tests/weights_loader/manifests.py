"""Published key lists, as packed by scripts/make_test_manifests.py."""

from __future__ import annotations

import gzip
import json
from functools import cache
from pathlib import Path

from minisd.config import SD1, SD2, SDXL, SDXL_REFINER, ModelConfig

FOLDER = Path(__file__).parent.parent / "data" / "manifests"
FAMILY: dict[str, ModelConfig] = {
    "sd15": SD1,
    "sd15-inpainting": SD1,
    "sd15-ip2p": SD1,
    "sd21-base": SD2,
    "sd21-v": SD2,
    "sd2-inpainting": SD2,
    "sd2-depth": SD2,
    "sdxl-base": SDXL,
    "sdxl-inpainting": SDXL,
    "sdxl-refiner": SDXL_REFINER,
}
IN_CHANNELS = {
    "sd15-inpainting": 9,
    "sd15-ip2p": 8,
    "sd2-inpainting": 9,
    "sd2-depth": 5,
    "sdxl-inpainting": 9,
}


@cache
def manifest(name: str) -> dict:
    with gzip.open(FOLDER / f"{name}.json.gz", "rt", encoding="utf-8") as file:
        return json.load(file)


def shapes(tensors: dict, prefix: str = "") -> dict[str, tuple[int, ...]]:
    """{name without prefix: shape} of the tensors below `prefix`."""
    return {name[len(prefix) :]: tuple(row[1:]) for name, row in tensors.items() if name.startswith(prefix)}
