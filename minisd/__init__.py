"""minisd: a Stable Diffusion engine to read in an afternoon.

    import minisd
    engine = minisd.load()
    engine.txt2img("a red apple", seed=1).save("apple.png")

Importing this costs nothing: torch is imported when something needs it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from minisd.control import ControlUnit
    from minisd.conversion import convert
    from minisd.engine import Engine, load
    from minisd.errors import (
        Cancelled,
        CheckpointError,
        ImageError,
        MinisdError,
        NumericalError,
        PlanError,
        RequestError,
    )
    from minisd.events import Preview, Progress
    from minisd.freed_memory import keep_freed_memory
    from minisd.model import plan
    from minisd.picture import Picture
    from minisd.picture_prompt import PicturePrompt
    from minisd.placement import Plan
    from minisd.quantisation import quantize
    from minisd.region import Region
    from minisd.request import Request
    from minisd.result import Result
    from minisd.stream import Final
    from minisd.upscale import Upscaler, load_upscaler
    from minisd.weights_loader.checkpoint import open_checkpoint

__version__ = "0.1.0"

WHERE = {
    "Engine": "engine",
    "Final": "stream",
    "Result": "result",
    "load": "engine",
    "Cancelled": "errors",
    "CheckpointError": "errors",
    "ImageError": "errors",
    "MinisdError": "errors",
    "NumericalError": "errors",
    "PlanError": "errors",
    "RequestError": "errors",
    "ControlUnit": "control",
    "Picture": "picture",
    "PicturePrompt": "picture_prompt",
    "Upscaler": "upscale",
    "load_upscaler": "upscale",
    "Preview": "events",
    "Progress": "events",
    "Plan": "placement",
    "keep_freed_memory": "freed_memory",
    "plan": "model",
    "convert": "conversion",
    "quantize": "quantisation",
    "Region": "region",
    "Request": "request",
    "open_checkpoint": "weights_loader.checkpoint",
}

__all__ = [
    "Cancelled",
    "CheckpointError",
    "ControlUnit",
    "Engine",
    "Final",
    "ImageError",
    "MinisdError",
    "NumericalError",
    "Picture",
    "PicturePrompt",
    "Plan",
    "PlanError",
    "Preview",
    "Progress",
    "Region",
    "Request",
    "RequestError",
    "Result",
    "Upscaler",
    "convert",
    "keep_freed_memory",
    "load",
    "load_upscaler",
    "open_checkpoint",
    "plan",
    "quantize",
]


def __getattr__(name: str) -> object:
    if name in WHERE:
        return getattr(importlib.import_module(f"minisd.{WHERE[name]}"), name)
    raise AttributeError(f"module 'minisd' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *WHERE]
