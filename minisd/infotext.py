"""The `parameters` text that the community's tools read, and our own JSON beside it.

a red apple Negative prompt: blurry Steps: 20, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 5, Seed:
1, Size: 128x128, Model: emoji, Version: minisd
"""

from __future__ import annotations

import json

from minisd.request import Request
from minisd.samplers.names import SCHEDULES, find_sampler


def quote(value: str) -> str:
    """A value that holds a comma, colon or line end is written as a JSON string, as A1111 does."""
    return json.dumps(value, ensure_ascii=False) if any(c in value for c in ",:\n") else value


def parameters(request: Request, schedule: str, seed: int, model: str, version: str) -> str:
    """The text for one picture of a request made whole by `Request.for_model`; `seed` is that picture's
    own."""
    number = f"{request.cfg_scale:g}"
    settings: dict[str, str] = {
        "Steps": str(request.steps),
        "Sampler": find_sampler(request.sampler).label,
        "Schedule type": SCHEDULES[schedule].label,
        "CFG scale": number,
        "Seed": str(seed),
        "Size": f"{request.width}x{request.height}",
        "Model": quote(model),
    }
    if request.clip_skip is not None and request.clip_skip > 1:
        settings["Clip skip"] = str(request.clip_skip)
    if request.eta is not None:
        settings["Eta"] = f"{request.eta:g}"
    settings["RNG"] = {"philox": "NV", "torch": "CPU", "cuda": "GPU"}[request.forks.rng]
    settings["Version"] = f"minisd {version}"
    lines = [request.prompt]
    if request.negative_prompt:
        lines.append(f"Negative prompt: {request.negative_prompt}")
    lines.append(", ".join(f"{k}: {v}" for k, v in settings.items()))
    return "\n".join(lines)
